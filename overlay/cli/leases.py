"""``leases``: who holds what, and keeping or freeing a subnet by hand."""

import argparse
from argparse import Namespace
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from overlay.cli.flags import Parser, with_store
from overlay.cli.lease_records import COLUMNS, TimeLeft, holders, record, row
from overlay.cli.lease_watch import watch_leases
from overlay.cli.out import Output
from overlay.cli.watch import watchable
from overlay.model.errors import LeaseFormatError, OverlayError, UsageError
from overlay.model.lease import Lease
from overlay.model.subnet import Subnet, parse_subnet
from overlay.store.base import LeaseStore


class NoHolderError(OverlayError):
    """Nobody holds what was asked for."""


def add_parser(commands: Any) -> None:
    """Add ``leases`` and its subcommands; alone it lists."""
    about = "who holds which subnet"
    leases: Parser = commands.add_parser("leases", help=about, description=about)
    leases.add_argument(
        "--ttl",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for each lease's end (one request a lease)",
    )
    watchable(leases, with_store(list_leases))
    verbs = leases.add_subparsers(metavar="COMMAND", dest="verb")
    about = "print every change as a line, until interrupted"
    watch = verbs.add_parser("watch", help=about, description=about)
    watch.set_defaults(run=with_store(watch_leases))
    about = "who holds this; status 1 when nobody does"
    show = verbs.add_parser("show", help=about, description=about)
    show.add_argument("what", metavar="NODE|SUBNET|IP", help="a pod's address will do")
    watchable(show, with_store(show_lease))
    about = "keep a subnet for a node that is not there yet, or make a live lease permanent"
    reserve = verbs.add_parser("reserve", help=about, description=about)
    reserve.add_argument("subnet", metavar="SUBNET", help="10.244.3.0/24, dual-stack V4,V6")
    reserve.add_argument("--node", default="", metavar="NAME", help="the node's name or id")
    reserve.set_defaults(run=with_store(reserve_subnet))
    about = "delete a lease or a reservation; a node that still runs claims anew"
    release = verbs.add_parser("release", help=about, description=about)
    release.add_argument("what", metavar="SUBNET|NODE")
    release.set_defaults(run=with_store(release_lease))


def list_leases(args: Namespace, store: LeaseStore, out: Output) -> int:
    """Print every lease, by address; return 1 when keys could not be read."""
    view = store.view()
    leases = sorted(view.leases.values(), key=_order)
    ask = store if args.ttl else None
    records = _records(ask, leases)
    skipped = [{"key": key.key, "reason": key.reason} for key in view.skipped]
    document = {"revision": view.revision, "leases": records, "skipped": skipped}
    out.table(COLUMNS, [row(r) for r in records], document)
    if skipped and out.is_table:
        out.line("")
        out.table(("UNREADABLE KEY", "REASON"), [list(s.values()) for s in skipped], skipped)
    return 1 if skipped else 0


def show_lease(args: Namespace, store: LeaseStore, out: Output) -> int:
    """Print who holds a node's, a subnet's or an address's lease. Raises NoHolderError."""
    found = holders(store.view(), args.what, inside=True)
    records = _records(store, found)
    if found or not out.is_table:
        out.table(COLUMNS, [row(r) for r in records], {"leases": records})
    if not found:
        raise NoHolderError(f"nobody holds {args.what!r}")
    return 0


def reserve_subnet(args: Namespace, store: LeaseStore, out: Output) -> int:
    """Keep a subnet. Repeating it is safe. Raises SubnetTakenError."""
    lease = store.reserve(_subnet(args.subnet), args.node)
    _say("reserved" if lease.is_vacant else "made permanent", lease, out)
    return 0


def release_lease(args: Namespace, store: LeaseStore, out: Output) -> int:
    """Delete one lease. Raises NoHolderError, UsageError where the name means several."""
    found = holders(store.view(), args.what, inside=False)
    if not found:
        raise NoHolderError(f"nobody holds {args.what!r}")
    if len(found) > 1:
        names = ", ".join(lease.subnet.key for lease in found)
        raise UsageError(f"{args.what!r} means {names}; name one of these subnets")
    store.release(found[0])
    _say("released", found[0], out)
    return 0


def _records(store: LeaseStore | None, leases: Iterable[Lease]) -> list[dict[str, Any]]:
    """Return the leases' records; with a store, each with the time it has left."""
    leases = list(leases)
    if store is None or not leases:
        return [record(lease) for lease in leases]
    seconds = store.times_to_live(leases)
    now = datetime.now(UTC)
    return [record(x, TimeLeft(s, now)) for x, s in zip(leases, seconds, strict=True)]


def _say(what: str, lease: Lease, out: Output) -> None:
    out.facts({what: f"{lease.subnet} ({lease.node})"}, {"done": what, "lease": record(lease)})


def _subnet(text: str) -> Subnet:
    try:
        return parse_subnet(text)
    except LeaseFormatError as exc:
        raise UsageError(str(exc)) from exc


def _order(lease: Lease) -> tuple[tuple[int, int], ...]:
    return tuple((n.version, int(n.network_address)) for n in lease.subnet.networks())
