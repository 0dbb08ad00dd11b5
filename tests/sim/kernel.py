"""The fake kernel of one node, with others at work in it, and what an op must never do."""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Final

from overlay.kernel.base import NOTHING, KernelError, OpFailure
from overlay.kernel.fake import FakeKernel
from overlay.kernel.notices import OVERFLOW, Change, Notice
from overlay.model.address import IPNetwork, MacAddress
from overlay.model.kernel import (
    FdbEntry,
    KernelObject,
    Key,
    LinkAddress,
    Neighbor,
    Op,
    Route,
    VxlanLink,
)
from tests.sim.loop import Loop, Process

_FOREIGN_LINK: Final = VxlanLink(
    "vxlan7", 7, 4789, MacAddress("02:00:00:00:00:77"), 1450, ip_address("198.51.100.1"), "eth1"
)
Blame = Callable[[str], None]


class SimKernel(FakeKernel):
    """Survives its agents. ``fail`` and ``kill`` are chances for each operation."""

    def __init__(self, loop: Loop, name: str, blame: Blame) -> None:
        super().__init__(("eth0", "eth1"))
        self._loop = loop
        self._name = name
        self._blame = blame
        self.process: Process | None = None
        self.fail = 0.0
        self.kill = 0.0
        self.others = 0  # changes that somebody else made
        self.notices: Callable[[Notice], None] = lambda _notice: None
        self.unheard: set[Key] = set()  # what others changed, and no notice told of since a dump
        self.foreign: dict[Key, KernelObject] = {
            item.key: item
            for item in (
                Route(ip_network("10.0.0.0/8"), "eth1"),
                Route(ip_network("10.244.0.0/15"), "eth1"),
                Route(ip_network("198.51.100.0/24"), "eth0"),
                FdbEntry("eth1", MacAddress("02:00:00:00:00:99"), ip_address("198.51.100.9")),
                Neighbor("eth0", ip_address("192.0.2.254"), MacAddress("02:00:00:00:00:fe")),
                _FOREIGN_LINK,
            )
        }
        self.untouched = dict(self.foreign)

    def dump(self, known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        """Return what is ours, a moment later; now and then the kernel has no memory left."""
        self._read()
        self.unheard.clear()
        return super().dump(known)

    def look(self) -> object:
        """Return what a dump is told by, with the troubles of one."""
        self._read()
        return super().look()

    def _read(self) -> None:
        self._pass_time()
        if self.fail and self._loop.random.random() < self.fail:
            msg = "dump: No buffer space available"
            raise KernelError(msg)

    def apply(self, ops: Iterable[Op]) -> tuple[OpFailure, ...]:
        """Carry out ``ops`` one by one: between any two the process may be killed."""
        failures: list[OpFailure] = []
        ops = list(ops)
        others = self.others
        is_new_link = any(isinstance(op.target, VxlanLink) for op in ops)
        carried = set() if is_new_link else self._carried(ops)
        for op in ops:
            process = self.process
            if process is None or not process.is_alive:
                break
            if self.kill and self._loop.random.random() < self.kill:
                process.die()
            if self._loop.random.random() < 0.02:
                self._pass_time()
            self._judge(op)
            if self.fail and self._loop.random.random() < self.fail:
                failures.append(OpFailure(op, errno.ENOBUFS, "No buffer space available"))
                carried = set()  # a kernel that refuses a change keeps nobody connected
                continue
            failures += super().apply([op])
            if others != self.others:
                carried = set()
            # What the agent cannot know to be gone it leans on, until it looks at all.
            cut = [
                prefix
                for prefix in sorted(carried, key=str)
                if not self.reaches(prefix) and self.unheard.isdisjoint(self._way(prefix))
            ]
            if cut:
                self._blame(f"{self._name}: {cut[0]} is unreachable after `{op}`")
                carried = set()
        return tuple(failures)

    def reaches(self, prefix: IPNetwork) -> bool:
        """Return whether packets to a peer's subnet find route, neighbor and forwarding entry."""
        route = self.objects.get(Route(prefix, "").key)
        if not isinstance(route, Route):
            return False
        if not route.onlink:
            return route.device in self.interfaces
        neighbor = self.objects.get(("neigh", route.device, route.gateway))
        if not isinstance(neighbor, Neighbor):
            return False
        return ("fdb", route.device, neighbor.mac) in self.objects

    def _way(self, prefix: IPNetwork) -> set[Key]:
        """Return the keys of what packets to a peer's subnet need, as far as the way is there."""
        found: set[Key] = {Route(prefix, "").key}
        route = self.objects.get(Route(prefix, "").key)
        if isinstance(route, Route) and route.onlink:
            found.add(("neigh", route.device, route.gateway))
            neighbor = self.objects.get(("neigh", route.device, route.gateway))
            if isinstance(neighbor, Neighbor):
                found.add(("fdb", route.device, neighbor.mac))
        return found

    def disturb(self, kind: str) -> str:
        """Change something of ours as somebody else would; return what."""
        draw = self._loop.random
        ours = list(self.objects.values())
        self.others += 1
        if kind == "add":
            stray = Route(ip_network(f"10.244.{draw.randrange(16)}.128/26"), "eth0")
            return self._put(stray)
        if not ours:
            return "nothing"
        item = draw.choice(ours)
        if kind == "change" and isinstance(item, Neighbor):
            return self._put(Neighbor(item.device, item.address, MacAddress("02:ff:00:00:00:01")))
        if kind == "change" and isinstance(item, FdbEntry):
            return self._put(FdbEntry(item.device, item.mac, ip_address("203.0.113.1")))
        if kind == "flush":
            self.objects.clear()
            self.notices(OVERFLOW)
            return "everything"
        super()._delete(Op("del", item))
        self.notices(Change("del", item.key, None))
        if isinstance(item, VxlanLink):
            self.notices(OVERFLOW)
        return f"del {item}"

    def _put(self, item: KernelObject) -> str:
        self.objects[item.key] = item
        self.notices(Change("set", item.key, item))
        return f"set {item}"

    def _judge(self, op: Op) -> None:
        """Blame an op that is about something of others."""
        item = op.target
        if op.verb == "del" and item.key not in self.objects and item.key in self.foreign:
            self._blame(f"{self._name}: `{op}` is about {self.foreign[item.key]}, not ours")
        if op.verb == "set" and item.key in self.foreign:
            self._blame(f"{self._name}: `{op}` replaces {self.foreign[item.key]}, not ours")
        device = item.name if isinstance(item, VxlanLink) else getattr(item, "device", "")
        is_on_ours = device.startswith("overlay") or not device
        if not is_on_ours and not isinstance(item, Route):
            self._blame(f"{self._name}: `{op}` is on {device}, not ours")
        if isinstance(item, LinkAddress) and not is_on_ours:
            self._blame(f"{self._name}: `{op}` changes an address of {device}")

    def _carried(self, ops: Sequence[Op]) -> set[IPNetwork]:
        """Return the subnets that are reachable now and that no op takes away for good."""
        deleted = {op.target.key for op in ops if op.verb == "del"}
        return {
            item.prefix
            for item in self.objects.values()
            if isinstance(item, Route) and item.key not in deleted and self.reaches(item.prefix)
            and item.key == Route(item.prefix, "").key
        }  # fmt: skip

    def _pass_time(self) -> None:
        if self.process is not None:
            self.process.sleep(self._loop.random.uniform(0, 0.01))
