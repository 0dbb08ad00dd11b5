"""Two nodes with two pods each, and echo servers at the far ends."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import agents, iperf
from bench.bed import Bed, Node
from bench.iperf import Path
from bench.options import AgentCommand
from bench.pods import Pod, pods
from bench.ready import await_routes

UNDERLAY = "node to node"


@dataclass(frozen=True, slots=True)
class Fabric:
    """The nodes, their agents, and the pods of each."""

    nodes: Sequence[Node]
    running: Sequence[agents.Running]
    pods: Sequence[Sequence[Pod]]

    @property
    def underlay(self) -> Path:
        """Return the way from the first node to the second."""
        here, there = self.nodes
        return Path(UNDERLAY, here.namespace, there.namespace, there.address)

    @property
    def across(self) -> Path:
        """Return the way from the first pod to one of the other node."""
        here, there = self.pods
        return Path("pod to pod", here[0].namespace, there[0].namespace, there[0].address)

    @property
    def local(self) -> Path:
        """Return the way from the first pod to one of the same node."""
        here, _ = self.pods
        return Path("pods of one node", here[0].namespace, here[1].namespace, here[1].address)

    @property
    def paths(self) -> list[Path]:
        """Return all three, the underlay first."""
        return [self.underlay, self.across, self.local]


@contextlib.contextmanager
def fabric(agent: AgentCommand, test: Bed) -> Iterator[Fabric]:
    """Make two nodes of one agent with their pods; they are gone after the block."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(test.node(number)) for number in (1, 2)]
        running = [stack.enter_context(agents.running(agent, test, node)) for node in nodes]
        await_routes(nodes, running)
        made = Fabric(nodes, running, [stack.enter_context(pods(agent, n, 2)) for n in nodes])
        for namespace in {path.target for path in made.paths}:
            stack.enter_context(iperf.echo_server(namespace))
        yield made
