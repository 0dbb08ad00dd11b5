"""The mesh as one part of the agent: what runs, what is answered, shown and counted."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from overlay.agent.ask import Answer, Asks
from overlay.agent.explain_call import ExplainCall
from overlay.agent.flags import Flags
from overlay.agent.host import Host
from overlay.agent.mesh import Mesh
from overlay.agent.mesh_clamp import Clamp
from overlay.agent.mesh_metrics import mesh_families
from overlay.agent.mesh_report import mesh_calls
from overlay.agent.mesh_seal import seal_question
from overlay.agent.status import Status
from overlay.model.attachment import Attachment
from overlay.store.base import LeaseStore, StopSignal

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from overlay.agent.page import Answers


class MeshPart:
    """``host`` is the machine as the lessee shall see it; ``answers`` is what the page shows.

    ``pods`` are this node's attachments.
    """

    def __init__(
        self,
        flags: Flags,
        store: LeaseStore,
        status: Status,
        host: Host,
        clock: Callable[[], float],
        pods: Callable[[], Sequence[Attachment]],
    ) -> None:
        self._status = status
        self._explain = ExplainCall(status, pods, clock)
        self._mesh = Mesh(flags.mesh, flags.node, status, store, clock)
        self._asks = Asks(flags.node.id, self._mesh.keys, self._asked(), clock)
        self.clamp = Clamp(host.find_underlay, is_on=flags.mesh.clamp)
        self.host = replace(host, find_underlay=self.clamp.find_underlay)
        self.answers: Answers = {}
        self.beside: Callable[[], Iterable[Metric]] = tuple
        self._mesh.ceiling = self.clamp.ceiling
        self._mesh.mtu_found = lambda results: self.clamp.found(results, status.get())

    def run(self, stop: StopSignal) -> None:
        """Measure until ``stop`` is set."""
        self._mesh.run(stop)

    def calls(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Return what the node's socket answers."""
        seal = functools.partial(seal_question, self._status)
        return {**mesh_calls(self._mesh, self._status), "seal": seal}

    def _asked(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Return what other nodes may ask: none costs more than it says."""
        own = self.calls()["mesh"]
        return {"mesh": lambda _given: own({}), "explain": self._explain}

    def challenge(self) -> Answer:
        """Return a nonce for a question of another node."""
        return self._asks.challenge()

    def ask(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer to a question of another node."""
        return self._asks.answer(path, headers, body)

    def page(self) -> str:
        """Return the status page."""
        from overlay.agent.page import status_page  # 5 ms, when somebody looks

        return status_page(self.answers, self._status)

    def metrics(self) -> "Iterable[Metric]":
        """Return the mesh's metrics, and those of the parts beside it."""
        return (*mesh_families(self._mesh, self._status.get()), *self.beside())
