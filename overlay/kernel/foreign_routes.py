"""Routes of others at the very prefixes of ours (docs/decisions/0004), looked for and named.

Where ours has no metric, the kernel refuses to make it beside another, which
is then replaced. Where routes are spread by metrics (docs/decisions/0012),
another with a lower one would be taken in silence: it is deleted as soon as ours is there.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from overlay.kernel import messages, parse
from overlay.kernel.links import list_links, names_by_index
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import Message
from overlay.model.kernel import (
    MAIN_TABLE,
    POD_ROUTE_PROTOCOL,
    ROUTE_PROTOCOL,
    ForeignRoute,
    KernelObject,
    Op,
    Route,
)

log = logging.getLogger(__name__)

_NAMED: Final = 5  # that the log names one by one
_ASKED: Final = 64  # routes of ours, beyond which one dump is less than a question for each
_PROTOCOL_AT: Final = 5  # in struct rtmsg, linux/rtnetlink.h
_OURS: Final = frozenset({ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL})


def is_spread(item: KernelObject) -> bool:
    """Return whether somebody else's route could stand beside ``item``."""
    return type(item) is Route and item.metric != 0 and item.table == MAIN_TABLE


def dump(rtnl: RtnlSocket) -> list[Message]:
    """Return what stands in IPv4's main table beside ours. Raises KernelError."""
    found = rtnl.dump(messages.RTM_GETROUTE, messages.main_table_request())
    return [each for each in found if each[0][each[1] + _PROTOCOL_AT] not in _OURS]


def before(
    ours: Iterable[KernelObject], dumped: Iterable[Message], names: Mapping[int, str]
) -> list[ForeignRoute]:
    """Return those of ``dumped`` that stand at the prefix of one of ``ours``, and before it."""
    found = [parse.foreign_route(*each, names) for each in dumped]
    places: dict[object, list[ForeignRoute]] = {}
    for each in found:
        if each is not None:
            places.setdefault(each.prefix, []).append(each)
    return [
        foreign
        for item in ours
        if type(item) is Route and is_spread(item)
        for foreign in places.get(item.prefix, ())
        if foreign.metric < item.metric
    ]


def less_spared(ops: Sequence[Op]) -> Sequence[Op]:
    """Return ``ops`` without deletions of others' routes where ours goes as well."""
    if not any(type(op.target) is ForeignRoute for op in ops):
        return ops
    gone = {
        op.target.prefix
        for op in ops
        if op.verb == "del" and isinstance(op.target, Route) and is_spread(op.target)
    }
    return [
        op for op in ops if not (isinstance(op.target, ForeignRoute) and op.target.prefix in gone)
    ]


def uncover(rtnl: RtnlSocket, made: Sequence[Route]) -> None:
    """Delete what the kernel would take before the routes just ``made``, and name it."""
    if len(made) <= _ASKED:
        asked = (rtnl.ask(messages.RTM_GETROUTE, _inside(route)) for route in made)
        if not before(made, [each for each in asked if each is not None], {}):
            return
    found = before(made, dump(rtnl), names_by_index(list_links(rtnl)))
    name_removed(found)
    # Refused is one that went by itself; any other is found by the next dump.
    rtnl.send([messages.request(Op("del", each), {}) for each in found])


def _inside(route: Route) -> bytes:
    """Return the question what the kernel takes for the last host of a prefix.

    The first may be a broadcast address of its own, and the second a bridge's.
    """
    size = 1 << (route.prefix.max_prefixlen - route.prefix.prefixlen)
    return messages.route_query(route.prefix, max(size - 2, 0))


def name_removed(routes: Sequence[ForeignRoute]) -> None:
    """Name the first few of ``routes``, which are going to be deleted, in the log."""
    _name([(str(each.prefix), each.protocol, each.device) for each in routes])


def name_replaced(rtnl: RtnlSocket, routes: Iterable[Route]) -> None:
    """Name the first few of the routes that others made at the places of ``routes``."""
    found: list[tuple[str, int, str]] = []
    names: Mapping[int, str] | None = None
    for route in routes:
        answer = rtnl.ask(messages.RTM_GETROUTE, messages.route_query(route.prefix))
        if answer is None:
            continue
        protocol, index = parse.route_maker(answer)
        if protocol == ROUTE_PROTOCOL:
            continue
        if names is None:
            names = names_by_index(list_links(rtnl))
        found.append((str(route.prefix), protocol, names.get(index, f"#{index}")))
    _name(found)


def _name(found: Sequence[tuple[str, int, str]]) -> None:
    for prefix, protocol, device in found[:_NAMED]:
        log.warning(
            "route %s was there already, by protocol %d on %s, and is replaced: the fabric "
            "owns its peers' subnets",
            prefix,
            protocol,
            device,
        )
    if len(found) > _NAMED:
        log.warning("%d more such routes are replaced", len(found) - _NAMED)
