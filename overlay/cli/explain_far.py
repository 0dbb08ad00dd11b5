"""``explain``: the other node's half, asked of its agent under the fabric's key."""

from argparse import Namespace
from typing import Final

from overlay.cli.ask import AgentSealer, Place, Sealer, StoreSealer, ask, parse_port
from overlay.cli.flags import socket_path, store_config
from overlay.model.errors import OverlayError
from overlay.store.base import LeaseStore
from overlay.trace.facts import FarHalf, Observed, Party
from overlay.trace.far import Asked

# An agent answers within some tens of milliseconds, or is not to be reached.
_TIMEOUT_S: Final = 1.5


def far_half(args: Namespace, observed: Observed, *, has_agent: bool) -> FarHalf:
    """Return what the other party's node says of its half; why it says nothing, otherwise.

    ``has_agent`` says whether this node's agent answers.
    """
    other = other_party(observed)
    if other.kind == "other" or other.is_here or other.holder is None:
        return FarHalf()
    if args.local:
        return FarHalf(why="--local: not asked")
    packet = observed.forward.packet
    address = next(iter(other.holder.public.values()), None)
    if address is None:
        return FarHalf(why=f"where {other.node} is to be asked is not known")
    place = Place(other.node, address, parse_port("--at-port", args.at_port))
    question = {
        "source": str(packet.source),
        "destination": str(packet.destination),
        "protocol": packet.protocol,
        "port": packet.port,
    }
    flags = f" --proto {packet.protocol}" if packet.protocol != "icmp" else ""
    flags += f" --port {packet.port}" if packet.port is not None else ""
    try:
        answer = ask(
            _sealer(args, has_agent=has_agent), place, "explain", question, timeout_s=_TIMEOUT_S
        )
        return Asked(other.node, packet, flags).steps(answer)
    except OverlayError as exc:
        return FarHalf(why=f"not asked: {exc}")


def _sealer(args: Namespace, *, has_agent: bool) -> Sealer:
    """Return who has the fabric's key: this node's agent, or else the store."""
    if has_agent:
        return AgentSealer(socket_path(args))
    store: LeaseStore = args.open_store(store_config(args))
    try:
        return StoreSealer(store.view())
    finally:
        store.close()


def other_party(observed: Observed) -> Party:
    """Return the party that is not on this node, or the destination where both are."""
    source, destination = observed.source, observed.destination
    return destination if source.is_here else source
