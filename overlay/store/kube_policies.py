"""Network policies, namespaces and pods of a Kubernetes cluster, for one node.

Policies and namespaces are followed everywhere, this node's pods whole; pods
of other nodes only once there is a policy, and of them only what policies ask
about. See docs/decisions/0010.
"""

import functools
import random
import time
from collections.abc import Callable
from typing import Any, Final

from overlay.model.netpol import Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.store.base import PermissionMissingError, StopSignal, StoreError
from overlay.store.kube_client import EVERYWHERE, Kind, KubeClient
from overlay.store.kube_crew import Crew
from overlay.store.kube_errors import KubeUnavailableError, NotThereError
from overlay.store.kube_pod import PeerPodReader
from overlay.store.kube_policy_join import (
    CLUSTER,
    NAMESPACES,
    NODES,
    OWN,
    PEERS,
    POLICIES,
    PolicyJoin,
)
from overlay.store.kube_policy_kinds import CLUSTER_POLICIES, OWN_PODS, peer_pods
from overlay.store.kube_policy_kinds import NAMESPACES as NAMESPACE_KIND
from overlay.store.kube_policy_kinds import NODES as NODE_KIND
from overlay.store.kube_policy_kinds import POLICIES as POLICY_KIND
from overlay.store.kube_watch import KubeWatch, Pace, read_object

# Without the kind of object, or without the permission, there are no cluster policies.
_NOT_TO_BE_HAD: Final = (NotThereError, PermissionMissingError)
# A pod that has finished is DELETED to a watch that asks so: its addresses leave at once.
_RUNNING: Final = "status.phase!=Succeeded,status.phase!=Failed"


class KubePolicySource:
    """A ``PolicySource`` over the connections of the leases.

    ``cluster`` says whether ClusterNetworkPolicies are wanted; a cluster
    without that kind of object has none.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        *,
        cluster: bool,
        pace: Pace | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._node, self._cluster = client, node, cluster
        self._pace, self._uniform, self._clock = pace, uniform, clock

    def view(self) -> PolicyView:
        """Return everything, all pods whole. See ``PolicySource``.

        Kinds are listed one after another, each at a revision of its own.
        """
        join = PolicyJoin(lambda _: None, lambda _: None, lambda: None, cluster=self._cluster)
        for name, watch in self._watches().items():
            try:
                join.take(name, *watch.list_once(), None)
            except _NOT_TO_BE_HAD as exc:
                if name != CLUSTER:
                    raise
                join.leave_out(name, exc)
        join.begin_peers()
        join.take(PEERS, {}, 0, None)
        join.take(OWN, *self._watch(OWN_PODS).list_once(), None)
        view = join.view()
        if view is None:
            msg = f"Kubernetes API at {self._client.url}: not all that policies need was listed"
            raise KubeUnavailableError(msg)
        return view

    def watch(
        self,
        deliver: Callable[[PolicyView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set. See ``PolicySource``."""
        crew = Crew(stop)
        reader = PeerPodReader()
        has_begun = False

        def follow(name: str, watch: KubeWatch[Any]) -> None:
            def fail(error: StoreError | None) -> None:
                if name == CLUSTER and isinstance(error, _NOT_TO_BE_HAD):
                    join.leave_out(name, error)
                else:
                    join.fail(name, error)

            watch.run(functools.partial(join.take, name), fail, crew)

        def want_peers() -> None:
            nonlocal has_begun
            if has_begun:
                peers.relist()
            else:
                has_begun = True
                crew.start(functools.partial(follow, PEERS, peers), "kube-policy-peers")

        join = PolicyJoin(deliver, trouble, want_peers, cluster=self._cluster)
        peers = self._watch(
            peer_pods(reader.read),
            f"spec.nodeName!={self._node},{_RUNNING}",
            lambda: reader.begin(join.begin_peers()),
        )
        watches: dict[str, KubeWatch[Any]] = {
            **self._watches(),
            OWN: self._watch(OWN_PODS, f"spec.nodeName={self._node}"),
        }
        for number, (name, watch) in enumerate(watches.items()):
            crew.start(functools.partial(follow, name, watch), f"kube-policy-{number}")
        crew.join()

    def pod(self, key: PodKey) -> Pod | None:
        """Return a pod as it stands. See ``PolicySource``."""
        namespace, name = key
        try:
            raw = self._client.call("get", OWN_PODS, name=name, namespace=namespace)
            found = read_object(OWN_PODS, raw)
        except NotThereError:
            return None
        except ValueError as exc:
            msg = f"Kubernetes API at {self._client.url}: pod {namespace}/{name}: {exc}"
            raise KubeUnavailableError(msg) from exc
        if found.value is None:
            raise StoreError(f"pod {namespace}/{name}: {found.error}")
        return found.value

    def writable(self) -> None:
        """Return None: objects are written with ``kubectl``. See ``PolicySource``."""

    def close(self) -> None:
        """Do nothing: the connections are the leases'."""

    def _watches(self) -> dict[str, KubeWatch[Any]]:
        """Return what is followed wherever there are pods, by the name of its part."""
        kinds: dict[str, Kind[Any]] = {NAMESPACES: NAMESPACE_KIND, POLICIES: POLICY_KIND}
        if self._cluster:
            kinds |= {CLUSTER: CLUSTER_POLICIES, NODES: NODE_KIND}
        return {name: self._watch(kind) for name, kind in kinds.items()}

    def _watch(
        self, kind: Kind[Any], fields: str = "", on_list: Callable[[], None] = lambda: None
    ) -> KubeWatch[Any]:
        is_namespaced = kind.plural not in {NAMESPACES, CLUSTER, NODES}
        return KubeWatch(
            self._client,
            kind,
            namespace=EVERYWHERE if is_namespaced else None,
            selectors={"fieldSelector": fields} if fields else None,
            pace=self._pace,
            uniform=self._uniform,
            clock=self._clock,
            on_list=on_list,
        )
