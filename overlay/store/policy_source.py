"""The contract of a policy source, and of the nodes' part in it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from overlay.model.netpol import Labels, Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.store.base import StopSignal, StoreError

Document = Mapping[str, Any]  # one object of the Kubernetes API


class NoSuchObjectError(StoreError):
    """The source holds no object of that name."""

    exit_code = 1


class PolicySource(Protocol):
    """Where policies, namespaces and pods come from.

    Every call has a deadline and raises StoreUnavailableError or
    StoreAccessError; calls may come from any thread.
    """

    def view(self) -> PolicyView:
        """Return everything the source holds, at one revision."""

    def watch(
        self,
        deliver: Callable[[PolicyView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Call ``deliver`` with the first view and after every change, until ``stop`` is set.

        As ``LeaseStore.watch``: what fails is told once and retried for ever,
        the last view stays valid meanwhile.
        """

    def pod(self, key: PodKey) -> Pod | None:
        """Return a pod as it stands at this moment; None where there is none of that name.

        None as well where nodes tell of their pods themselves.
        """

    def writable(self) -> "PolicyStore | None":
        """Return the source as one to write to; None where its objects are an API server's."""

    def close(self) -> None:
        """Give back connections."""


class PolicyStore(PolicySource, Protocol):
    """A source that this program itself writes: objects as people give them, pods as nodes do."""

    def apply(self, documents: Iterable[Document | None]) -> list[str]:
        """Write objects, all of them or none; return how each is called, in order.

        NetworkPolicy, ClusterNetworkPolicy and Namespace. Raises
        PolicyFormatError naming object and field, and UsageError where there
        are too many for one transaction; nothing is written then. Repeating it
        is safe.
        """

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete one object; ``namespace`` is empty where the kind has none.

        Raises NoSuchObjectError.
        """

    def documents(self) -> Sequence[Document]:
        """Return the objects that ``apply`` wrote, as they were written, by key."""

    def label(self, pod: PodKey, changes: Mapping[str, str | None]) -> Labels:
        """Change the labels that an operator gives to a pod; None takes one away. Return them.

        The pod need not be there yet: it has them from its start. Raises
        PolicyFormatError, and ConfigConflictError when they change meanwhile.
        """

    def publish(self, node: str, pods: Sequence[Pod], lease_id: int) -> None:
        """Make ``pods`` the ones that the node of that id tells of, and nothing else.

        They leave with the etcd lease ``lease_id``; for 0 they stay. Repeating
        it is safe. Raises StoreUnavailableError also when that lease has ended.
        """

    def forget_published(self) -> None:
        """Look, before the next ``publish``, what is there: somebody else changed it."""
