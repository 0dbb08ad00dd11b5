"""``capture``: what goes through the tunnel, decoded, as it passes this node's underlay."""

import os
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from overlay.cli.dissect import Dissector, names_of
from overlay.cli.flags import Parser, with_output
from overlay.cli.knowledge import read_knowledge
from overlay.cli.out import Output
from overlay.kernel.asked import Ground
from overlay.kernel.ring import Captured, Counts, Ring
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import FAMILIES, IPAddress
from overlay.model.errors import OverlayError, UsageError
from overlay.policy.verdict import Packet
from overlay.trace.bpf import tunnel_filter
from overlay.trace.holders import Knowledge
from overlay.trace.parties import Names
from overlay.trace.pcap import file_header, record

_TURN_S = 0.2  # how long one wait for packets lasts; Ctrl-C ends it at once


class NoTunnelError(OverlayError):
    """There is no VXLAN device of ours to capture from."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where tunnel packets pass: an interface of the underlay, and the tunnel's UDP port."""

    device: str
    port: int


def add_parser(commands: Any) -> None:
    """Add the command."""
    about = "VXLAN traffic of this node, decoded, the inner packet first; until Ctrl-C"
    parser: Parser = commands.add_parser("capture", help=about, description=about)
    parser.add_argument("--peer", metavar="NODE", help="only to or from this node")
    parser.add_argument("--pod", metavar="IP", help="only to or from this pod: address or name")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the frames (pcap), too")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many packets")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long")
    parser.set_defaults(run=with_output(run))


def run(args: Namespace, out: Output) -> int:
    """Print packets until the count, the time or Ctrl-C ends it; then what was lost."""
    if os.geteuid() != 0:
        raise UsageError("capture opens packet sockets: run it as root")
    for flag, value in (("count", args.count), ("seconds", args.seconds)):
        if value is not None and not 0 < value < 1e9:
            raise UsageError(f"--{flag} {value:g}: more than 0")
    with closing(RtnlSocket()) as rtnl:
        ground = Ground(rtnl)
        knowledge = read_knowledge(args, ground.addresses())
        peers, pods = _chosen(args, knowledge, ground)
        sources = tunnel_sources(ground)
    with ExitStack() as stack:
        kept = stack.enter_context(_open(args.write)) if args.write is not None else None
        rings = [
            stack.enter_context(Ring(source.device, tunnel_filter(source.port, peers, pods)))
            for source in sources
        ]
        # Loading it takes a while, in which the rings hold what passes.
        dissector = Dissector(names_of(knowledge))
        shown = 0
        try:
            for frame in _bounded(rings, args.count, args.seconds):
                shown += 1
                _show(out, dissector, frame)
                if kept is not None:
                    kept.write(record(frame.data, frame.length, frame.seconds, frame.nanoseconds))
        except KeyboardInterrupt:
            pass  # as it is meant to end
        counts = [ring.counts() for ring in rings]
    _summarize(out, args, shown, counts)
    return 0


def tunnel_sources(ground: Ground) -> list[Source]:
    """Return where the packets of our VXLAN devices pass, each once. Raises NoTunnelError."""
    found: dict[Source, None] = {}
    for name, info in ground.links.items():
        link = ground.link(name)
        if info.is_ours() and link is not None and link.port and link.lower:
            found[Source(link.lower, link.port)] = None
    if not found:
        msg = "this node has no VXLAN device of the fabric; look at `overlayctl status`"
        raise NoTunnelError(msg)
    return list(found)


def _chosen(
    args: Namespace, knowledge: Knowledge, ground: Ground
) -> tuple[Sequence[IPAddress], Sequence[IPAddress]]:
    """Return the underlay addresses of --peer and the addresses of --pod. Raises UsageError."""

    def is_local(address: IPAddress) -> bool:
        return ground.route(Packet(address, address), is_local=True).kind == "local"

    names = Names(knowledge, is_local)

    def addresses(text: str | None) -> list[IPAddress]:
        if text is None:
            return []
        found = (names.party(text, family) for family in FAMILIES)
        return list(dict.fromkeys(party.address for party in found if party is not None))

    return addresses(args.peer), addresses(args.pod)


def _bounded(rings: Sequence[Ring], count: int | None, seconds: float | None) -> Iterator[Captured]:
    deadline = time.monotonic() + seconds if seconds is not None else None
    left = count
    while deadline is None or time.monotonic() < deadline:
        for ring in rings:
            for frame in ring.read(_TURN_S / len(rings)):
                yield frame
                if left is not None:
                    left -= 1
                    if not left:
                        return


def _show(out: Output, dissector: Dissector, frame: Captured) -> None:
    document = dissector.document(frame.data)
    if document is None:
        return
    direction = "out" if frame.is_outgoing else "in"
    document = {"direction": direction, **document, "frame_bytes": frame.length}
    out.event(f"{direction:<3} {dissector.line(document)}", document)


def _summarize(out: Output, args: Namespace, shown: int, counts: Sequence[Counts]) -> None:
    passed = sum(each.packets for each in counts)
    dropped = sum(each.dropped for each in counts)
    summary = {
        "shown": shown,
        "matched": passed + dropped,
        "dropped": dropped,
        "file": str(args.write) if args.write is not None else None,
    }
    kept = f", kept in {args.write}" if args.write is not None else ""
    lost = f"{dropped} dropped: this program was too slow for them" if dropped else "none dropped"
    out.event(f"{shown} packets shown{kept}; {lost}", {"summary": summary})


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("wb")
        file.write(file_header())
    except OSError as exc:
        raise UsageError(f"--write {path}: {exc.strerror}") from exc
    return file
