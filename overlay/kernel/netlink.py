"""``Kernel`` on Linux: rtnetlink in the namespace of the thread that makes it."""

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from overlay.kernel import foreign_routes, messages, parse
from overlay.kernel.answers import Refusal
from overlay.kernel.base import NOTHING, DeviceConflictError, OpFailure
from overlay.kernel.echoes import Echoes
from overlay.kernel.links import (
    LinkConflictError,
    LinkInfo,
    LinkWriter,
    find_conflict,
    list_links,
    names_by_index,
    ours,
)
from overlay.kernel.marks import Mark
from overlay.kernel.rtnl import Request, RtnlSocket
from overlay.kernel.wire import Message
from overlay.model.address import FAMILIES
from overlay.model.kernel import ForeignRoute, KernelObject, Key, Op, Route, Rule, VxlanLink
from overlay.model.node import POD_LINK_PREFIX, NodeIdentity, Underlay, vtep_mac
from overlay.plan.backend import Tunnel

log = logging.getLogger(__name__)

# EINVAL: IPv6 refuses an onlink gateway that the very route to be replaced
# would reach by another device; that one has to go first.
_IN_THE_WAY: Final = frozenset({errno.EEXIST, errno.EINVAL})
_AT_A_TIME: Final = 2048  # operations that are packed together, messages that are decoded
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


class NetlinkKernel:
    """One network namespace. One thread uses it; see ``Kernel`` for the contract."""

    def __init__(self, *, replaces_flannel: bool = False) -> None:
        self._rtnl = RtnlSocket()
        self.echoes = Echoes(self._rtnl.port)
        self._writer = LinkWriter(replaces_flannel=replaces_flannel)
        self._links: dict[str, LinkInfo] | None = None
        self.mark: object = None
        self._is_spread = False  # whether others' routes could stand beside ours

    def close(self) -> None:
        """Close the sockets. What was set stays."""
        self._rtnl.close()
        self._writer.close()

    def dump(self, known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        """Return what is ours; see ``Kernel.dump``."""
        self.echoes.forget()
        links, mark = self._looked_at_links(), Mark()
        found = [_shared(item, known) for item in self._marked_devices(links, mark)]
        for section in self._sections(links):
            for part in self._parts(section):
                section.add_to(mark, part)
                found += [_shared(item, known) for item in section.decode(part)]
        self._is_spread = any(map(foreign_routes.is_spread, found))
        if self._is_spread:
            foreign = foreign_routes.dump(self._rtnl)
            mark.add_whole(foreign)
            found += foreign_routes.before(found, foreign, names_by_index(links))
        self.mark = mark.digest
        return found

    def look(self) -> object:
        """Return the mark that a dump would have now; see ``Kernel.look``."""
        links, mark = self._looked_at_links(), Mark()
        self._marked_devices(links, mark)
        for section in self._sections(links):
            for part in self._parts(section):
                section.add_to(mark, part)
        if self._is_spread:
            mark.add_whole(foreign_routes.dump(self._rtnl))
        return mark.digest

    def _looked_at_links(self) -> dict[str, LinkInfo]:
        self._links = None
        return self._known_links()

    def _marked_devices(self, links: dict[str, LinkInfo], mark: Mark) -> Sequence[VxlanLink]:
        names = names_by_index(links)
        # Routes are read with these names; no route of ours leads to a pod's link.
        mark.add([item for item in names.items() if not item[1].startswith(POD_LINK_PREFIX)])
        mark.add(devices := _devices(links))
        return devices

    def _sections(self, links: dict[str, LinkInfo]) -> Iterator["_Section"]:
        names = names_by_index(links)
        for link in ours(links):
            yield from self._device_sections(link)
        for family in FAMILIES:
            body = messages.routes_request(family)
            yield _Section(messages.RTM_GETROUTE, body, lambda part: parse.routes(part, names))
            yield _Section(messages.RTM_GETRULE, messages.rules_request(family), parse.rules)

    def _parts(self, section: "_Section") -> Iterator[Sequence[Message]]:
        """Ask, and yield the answer in parts: what is made of them is never all there twice."""
        answer = self._rtnl.dump(section.kind, section.body)
        for first in range(0, len(answer), _AT_A_TIME):
            yield answer[first : first + _AT_A_TIME]

    def devices(self) -> Sequence[VxlanLink]:
        """Return our devices alone; see ``Kernel.devices``."""
        return _devices(self._looked_at_links())

    def _device_sections(self, link: LinkInfo) -> Iterator["_Section"]:
        where = (link.name, link.index)
        body = messages.addresses_request(link.index)
        yield _Section(messages.RTM_GETADDR, body, lambda part: parse.addresses(part, *where))
        for family in FAMILIES:
            yield _Section(
                messages.RTM_GETNEIGH,
                messages.neighbors_request(family, link.index),
                lambda part: parse.neighbors(part, *where),
                Mark.add_neighbors,
            )
        yield _Section(
            messages.RTM_GETNEIGH,
            messages.fdb_request(link.index),
            lambda part: parse.fdb(part, *where),
            Mark.add_entries,
        )

    def apply(self, ops: Iterable[Op]) -> tuple[OpFailure, ...]:
        """Carry out ``ops``; see ``Kernel.apply``."""
        ops = tuple(ops)
        is_recent = self._links is None
        failures = self._apply(ops)
        stale = [f.op for f in failures if f.errno == errno.ENODEV]
        if not stale or is_recent:
            return tuple(failures)
        self._links = None  # a device was made anew since we looked
        rest = [f for f in failures if f.errno != errno.ENODEV]
        return (*rest, *self._apply(stale))

    def _apply(self, ops: Iterable[Op]) -> list[OpFailure]:
        failures: list[OpFailure] = []
        batch: list[Op] = []
        for op in ops:
            if not isinstance(op.target, VxlanLink):
                batch.append(op)
                continue
            failures += self._apply_batch(batch, self._known_links())
            batch = []
            self._links = None
            failures += self._apply_link(op, op.target, self._known_links())
            self._links = None
        return [*failures, *self._apply_batch(batch, self._known_links())]

    def _known_links(self) -> dict[str, LinkInfo]:
        """Return the interfaces as they were looked at last, which each dump does."""
        if self._links is None:
            self._links = list_links(self._rtnl)
        return self._links

    def _apply_link(self, op: Op, link: VxlanLink, links: dict[str, LinkInfo]) -> list[OpFailure]:
        try:
            if op.verb == "set":
                self._writer.set(link, links)
            else:
                self._writer.delete(link, links)
        except LinkConflictError as exc:
            return [OpFailure(op, errno.EEXIST, str(exc), is_conflict=True)]
        except OSError as exc:
            if op.verb == "del" and exc.errno in _GONE:
                return []
            return [OpFailure(op, exc.errno or errno.EIO, exc.strerror or str(exc))]
        return []

    def _apply_batch(self, batch: Sequence[Op], links: dict[str, LinkInfo]) -> list[OpFailure]:
        index = {name: link.index for name, link in links.items()}
        batch = foreign_routes.less_spared(batch)
        foreign_routes.name_removed([x.target for x in batch if type(x.target) is ForeignRoute])
        failures: list[OpFailure] = []
        made: list[Route] = []
        for first in range(0, len(batch), _AT_A_TIME):  # never all packed at once
            part = batch[first : first + _AT_A_TIME]
            refused = self._apply_part(part, index)
            failed = {each.op for each in refused}
            spread = [op for op in part if op.verb == "set" and foreign_routes.is_spread(op.target)]
            made += [
                op.target for op in spread if isinstance(op.target, Route) and op not in failed
            ]
            failures += refused
        foreign_routes.uncover(self._rtnl, made)
        return failures

    def _apply_part(self, ops: Sequence[Op], index: Mapping[str, int]) -> list[OpFailure]:
        failures: list[OpFailure] = []
        ready: list[Op] = []
        requests: list[Request] = []
        for op in ops:
            try:
                requests.append(messages.request(op, index))
                ready.append(op)
            except KeyError as exc:
                if op.verb == "set":
                    text = f"device {exc.args[0]} does not exist"
                    failures.append(OpFailure(op, errno.ENODEV, text))
        again: list[int] = []
        self.echoes.expect((each.kind, each.body) for each in requests)
        for refusal in self._rtnl.send(requests):
            op = ready[refusal.index]
            if _is_done_already(op, refusal):
                continue
            if op.verb == "set" and isinstance(op.target, Route) and refusal.errno in _IN_THE_WAY:
                again.append(refusal.index)
                continue
            failures.append(OpFailure(op, refusal.errno, refusal.text))
        if again:
            failures += self._replace_routes([(ready[i], requests[i]) for i in again])
        return failures

    def _replace_routes(self, made: Sequence[tuple[Op, Request]]) -> list[OpFailure]:
        """Put routes where others are; foreign ones are named in the log (docs/decisions/0004)."""
        routes = [op.target for op, _ in made if isinstance(op.target, Route)]
        foreign_routes.name_replaced(self._rtnl, routes)
        requests = [messages.replacement(request) for _op, request in made]
        failures: list[OpFailure] = []
        for refusal in self._rtnl.send(requests):
            op, request = made[refusal.index]
            route = op.target
            if refusal.errno == errno.EINVAL and isinstance(route, Route):
                self._rtnl.send([messages.removal(route)])
                if not self._rtnl.send([request]):
                    continue
            failures.append(OpFailure(op, refusal.errno, refusal.text))
        return failures


@dataclass(frozen=True, slots=True)
class _Section:
    """One part of a dump: question, what answers are decoded by, how they add to the mark."""

    kind: int
    body: bytes
    decode: Callable[[Sequence[Message]], Sequence[KernelObject]]
    add_to: Callable[[Mark, Sequence[Message]], None] = Mark.add_whole


def _shared(item: KernelObject, known: Mapping[Key, KernelObject]) -> KernelObject:
    same = known.get(item.key)
    return same if same is not None and same == item else item


def _devices(links: dict[str, LinkInfo]) -> list[VxlanLink]:
    names = names_by_index(links)
    found = (link.as_vxlan_link(names) for link in ours(links))
    return [device for device in found if device is not None]


def _is_done_already(op: Op, refusal: Refusal) -> bool:
    if op.verb == "del":
        return refusal.errno in _GONE
    return isinstance(op.target, Rule) and refusal.errno == errno.EEXIST


def check_devices(
    tunnel: Tunnel, node: NodeIdentity, underlay: Underlay, *, replaces_flannel: bool = False
) -> None:
    """Look whether a backend's devices can be made, before anything else is done.

    With ``replaces_flannel`` devices of flannel's are not in the way.
    Raises DeviceConflictError when a device that is not ours stands in the way.
    """
    with RtnlSocket() as rtnl:
        links = list_links(rtnl)
    for family, name in tunnel.devices.items():
        local = underlay.local[family].ip
        mac = vtep_mac(node.id, tunnel.vni, family)
        wanted = VxlanLink(name, tunnel.vni, tunnel.port, mac, 0, local, underlay.device)
        text = find_conflict(wanted, links, replaces_flannel=replaces_flannel)
        if text is not None:
            raise DeviceConflictError(text)
