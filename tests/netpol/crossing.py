"""A packet's way through the tables of the nodes that it crosses."""

from collections.abc import Iterable, Mapping

from overlay.model.address import IPAddress
from overlay.model.netpol import Flow, World
from overlay.policy.network.compile import CompileOptions, compile_policies
from overlay.policy.network.table import PolicyRuleset
from tests.netpol.packets import Packet, Table, parse_table
from tests.netpol.reference import pod_at


def compiled(world: World, options: CompileOptions) -> dict[str, PolicyRuleset]:
    """Return the table of each node."""
    return {node: compile_policies(world, node, options) for node in world.nodes}


def tables(rulesets: Mapping[str, PolicyRuleset]) -> dict[str, Table]:
    """Return what the text of each says."""
    return {node: parse_table(str(ruleset)) for node, ruleset in rulesets.items()}


def arrives(world: World, by_node: Mapping[str, Table], flow: Flow) -> bool:
    """Return whether the first packet passes every hook on its way.

    What a node sends itself passes ``output`` there, what is for a node
    ``input``, and what pods send or get ``forward``.
    """
    start, end = _node(world, flow.source), _node(world, flow.destination)
    is_from_pod = pod_at(world, flow.source) is not None
    is_to_pod = pod_at(world, flow.destination) is not None
    hooks: list[tuple[str, str]] = []
    if start is not None and start == end:
        hooks = [(start, "forward" if is_to_pod else "input")] if is_from_pod else []
        hooks += [(start, "output")] if not is_from_pod else []
    else:
        if start is not None:
            hooks.append((start, "forward" if is_from_pod else "output"))
        if end is not None:
            hooks.append((end, "forward" if is_to_pod else "input"))
    packet = Packet(flow.source, flow.destination, flow.protocol, flow.port)
    return all(by_node[node].passes(hook, packet) for node, hook in hooks)


def interesting(world: World, flows: Iterable[Flow]) -> list[Flow]:
    """Return the flows that have a pod at one end; nobody judges the others."""
    return [
        flow
        for flow in flows
        if pod_at(world, flow.source) is not None or pod_at(world, flow.destination) is not None
    ]


def _node(world: World, address: IPAddress) -> str | None:
    pod = pod_at(world, address)
    if pod is not None:
        return pod.node
    return next((node for node, own in world.nodes.items() if address in own), None)
