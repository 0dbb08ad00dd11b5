"""The sysctls that forwarding between pods needs, set where they differ.

Names have slashes (``net/ipv6/conf/eth0.100/accept_ra``), as ``sysctl`` takes
them too, because a device's name may hold dots. Values are those of the
calling thread's network namespace.

Nothing is set back when the agent goes: others may have come to need
forwarding, and nobody can tell. Left alone on purpose:

- ``rp_filter``: every packet from a tunnel has its route back through the same
  device, in table ``NODE_TABLE`` for what comes from nodes, so the strict
  check passes on ``all`` as well as on a device.
- ``net/bridge/bridge-nf-call-*``: whoever needs it loads br_netfilter.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.model.address import Family
from overlay.model.network import NetworkConfig
from overlay.model.node import POD_LINK_PREFIX, Underlay

_ROOT: Final = Path("/proc/sys")
# A container's own is read-only. Where the host's is mounted for it, that one
# shows the network namespace of who looks all the same.
_HOST_ROOT: Final = Path("/host/proc/sys")
_LOG: Final = logging.getLogger(__name__)

_FORWARD_V4: Final = "net/ipv4/ip_forward"
_FORWARD_V6: Final = "net/ipv6/conf/all/forwarding"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A value wanted; only while each of ``when`` (name and value) holds, if there are any."""

    name: str
    value: str
    when: tuple[tuple[str, str], ...] = ()

    @property
    def is_told(self) -> bool:
        """Return whether the kernel tells when it becomes due (RTM_NEWNETCONF): forwarding is."""
        names = (self.name, *(name for name, _ in self.when))
        return any(name == _FORWARD_V4 or name.endswith("/forwarding") for name in names)

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"


@dataclass(frozen=True, slots=True)
class Change:
    """A value that was written."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"sysctl {self.name}: {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was changed, and what could not be, each a sentence for people."""

    changes: tuple[Change, ...] = ()
    problems: tuple[str, ...] = ()


def wanted(
    config: NetworkConfig,
    underlay: Underlay,
    devices: Iterable[str],
    links: Iterable[str] = (),
) -> tuple[Sysctl, ...]:
    """Return what must be set, in this order.

    ``devices`` are the tunnel's, ``links`` further links of the host
    (``ipv6_links``) that may have their default route from a router's
    advertisement. To switch IPv6 forwarding on makes the kernel drop such
    routes and hear no further advertisement, unless the link's ``accept_ra``
    is 2 by then (``addrconf_fixup_forwarding`` in net/ipv6/addrconf.c). Where
    forwarding is on already, nothing changes for the host and its
    ``accept_ra`` is left alone.
    """
    values: list[Sysctl] = []
    tunnels = tuple(devices)
    if Family.IPV4 in config.ranges:
        values.append(Sysctl(_FORWARD_V4, "1"))
        # All links have it from ip_forward, until somebody takes it from one. The kernel
        # asks the link that a packet comes in by: a tunnel, or with plain routes the underlay,
        # which also brings the answers to what pods ask outside.
        links4 = (underlay.device, *tunnels)
        values += (Sysctl(f"net/ipv4/conf/{link}/forwarding", "1") for link in links4)
    if Family.IPV6 in config.ranges:
        for link in dict.fromkeys((underlay.device, *links)):
            if link in tunnels:
                continue
            name = f"net/ipv6/conf/{link}/accept_ra"
            before = ((name, "1"), (f"net/ipv6/conf/{link}/forwarding", "0"))
            values.append(Sysctl(name, "2", before))
        values.append(Sysctl(_FORWARD_V6, "1"))
        links6 = (underlay.device, *tunnels)
        values += (Sysctl(f"net/ipv6/conf/{link}/forwarding", "1") for link in links6)
        for device in tunnels:
            values.append(Sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "0"))
            values.append(Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0"))
    return tuple(values)


def ensure(settings: Iterable[Sysctl]) -> Outcome:
    """Write what differs, in order, and return what was written and what could not be.

    Each change is logged. Repeating it is safe; a second time changes nothing.
    """
    changes: list[Change] = []
    problems: list[str] = []
    for setting in settings:
        try:
            if not all(_read(name) == value for name, value in setting.when):
                continue
            old = _read(setting.name)
            if old == setting.value:
                continue
            _write(setting.name, f"{setting.value}\n")
        except OSError as exc:
            problems.append(_problem(setting, exc))
            continue
        change = Change(setting.name, old, setting.value)
        _LOG.info("%s", change)
        changes.append(change)
    return Outcome(tuple(changes), tuple(problems))


def differing(settings: Iterable[Sysctl]) -> frozenset[str]:
    """Return the names of those that ``ensure`` would write, as far as they can be read."""
    found = set()
    for setting in settings:
        with contextlib.suppress(OSError):
            is_due = all(_read(name) == value for name, value in setting.when)
            if is_due and _read(setting.name) != setting.value:
                found.add(setting.name)
    return frozenset(found)


def read(name: str) -> str | None:
    """Return a value; None where there is no such setting. Raises OSError."""
    try:
        return _read(name)
    except FileNotFoundError:
        return None


def ipv6_links() -> tuple[str, ...]:
    """Return the host's links that have IPv6 settings; none where the kernel has no IPv6.

    Pods' links are left out: a pod has no business to advertise routes to its node.
    """
    try:
        names = sorted(path.name for path in (_ROOT / "net/ipv6/conf").iterdir())
    except OSError:
        return ()
    return tuple(
        name
        for name in names
        if name not in {"all", "default", "lo"} and not name.startswith(POD_LINK_PREFIX)
    )


def _read(name: str) -> str:
    # By hand: some are looked at every second, and pathlib takes four times as long.
    file = os.open(f"{_ROOT}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 256).decode(errors="replace").strip()
    finally:
        os.close(file)


def _write(name: str, text: str) -> None:
    try:
        (_ROOT / name).write_text(text)
    except OSError as exc:
        if exc.errno != errno.EROFS or not (_HOST_ROOT / name).exists():
            raise
        (_HOST_ROOT / name).write_text(text)


def _problem(setting: Sysctl, exc: OSError) -> str:
    if exc.errno == errno.ENOENT:
        reason = "is not there: the device is gone, or the kernel runs without IPv6"
    elif exc.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        reason = f"is not ours to write ({exc.strerror}); run `sysctl -w {setting.name}="
        reason += f"{setting.value}` on the host"
    else:
        reason = f"failed: {exc.strerror or exc}"
    return f"sysctl {setting}: {reason}"
