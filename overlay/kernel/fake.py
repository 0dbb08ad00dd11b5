"""A kernel in memory for tests and simulation: refuses what Linux refuses."""

import errno
from collections.abc import Iterable, Mapping, Sequence

from overlay.kernel.base import NOTHING, OpFailure
from overlay.kernel.echoes import Echoes
from overlay.model.kernel import (
    FdbEntry,
    KernelObject,
    Key,
    LinkAddress,
    Neighbor,
    Op,
    Route,
    Rule,
    UnreachableRoute,
    VxlanLink,
)


class FakeKernel:
    """One namespace with the interfaces named; ``budget`` operations until it is "killed"."""

    def __init__(self, interfaces: Iterable[str] = ("eth0",)) -> None:
        self.objects: dict[Key, KernelObject] = {}
        self.interfaces = set(interfaces)
        self.log: list[Op] = []
        self.budget: int | None = None
        self.mark: object = None
        self.echoes = Echoes(0)

    def dump(self, known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        """Return what is ours."""
        del known  # its objects are the callers' own
        self.mark = frozenset(self.objects.values())
        return list(self.objects.values())

    def look(self) -> object:
        """Return the mark of what is ours."""
        return frozenset(self.objects.values())

    def devices(self) -> Sequence[VxlanLink]:
        """Return our devices alone."""
        return [item for item in self.objects.values() if isinstance(item, VxlanLink)]

    def apply(self, ops: Iterable[Op]) -> tuple[OpFailure, ...]:
        """Carry out ``ops``. With a ``budget`` the rest is left undone, as by kill -9."""
        failures: list[OpFailure] = []
        for op in ops:
            if self.budget is not None:
                if self.budget == 0:
                    break
                self.budget -= 1
            self.log.append(op)
            failure = self._set(op) if op.verb == "set" else self._delete(op)
            if failure is not None:
                failures.append(failure)
        return tuple(failures)

    def _set(self, op: Op) -> OpFailure | None:
        item = op.target
        if isinstance(item, VxlanLink):
            return self._set_link(op, item)
        device = "" if isinstance(item, Rule | UnreachableRoute) else item.device
        if device and device not in self._devices():
            return OpFailure(op, errno.ENODEV, f"device {device} does not exist")
        if isinstance(item, FdbEntry) and item.mac == "00:00:00:00:00:00":
            return OpFailure(op, errno.EINVAL, "cannot replace the default destination")
        if isinstance(item, Route) and item.onlink and not self._has_address(item.device):
            # fib_check_nh_nongw and its IPv6 twin: onlink needs a usable device.
            return OpFailure(op, errno.ENETUNREACH, "Nexthop has invalid gateway")
        self.objects[item.key] = item
        return None

    def _set_link(self, op: Op, link: VxlanLink) -> OpFailure | None:
        if link.underlay not in self.interfaces:
            text = f"underlay interface {link.underlay} does not exist"
            return OpFailure(op, errno.ENODEV, text)
        old = self.objects.get(link.key)
        if isinstance(old, VxlanLink) and (old.vni, old.port, old.gbp, old.local.version) != (
            link.vni,
            link.port,
            link.gbp,
            link.local.version,
        ):
            self._forget_device(link.name)
        self.objects[link.key] = link
        return None

    def _delete(self, op: Op) -> OpFailure | None:
        if isinstance(op.target, VxlanLink):
            self._forget_device(op.target.name)
        self.objects.pop(op.target.key, None)
        return None

    def _forget_device(self, name: str) -> None:
        """Remove what hangs on a device, as the kernel does when it goes."""
        for key, item in list(self.objects.items()):
            if isinstance(item, LinkAddress | Neighbor | FdbEntry | Route) and item.device == name:
                del self.objects[key]

    def _devices(self) -> set[str]:
        links = {i.name for i in self.objects.values() if isinstance(i, VxlanLink)}
        return self.interfaces | links

    def _has_address(self, device: str) -> bool:
        return any(isinstance(i, LinkAddress) and i.device == device for i in self.objects.values())
