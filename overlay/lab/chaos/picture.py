"""What a node's kernel holds of the fabric, as the tools of an operator print it.

Read through ``ip``, ``bridge`` and ``nft``, not through the product's own
netlink code, so that what that does not see is seen here.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from overlay.lab import netns

DEVICE: Final = "overlay.1"  # of the lab's VNI
NODE_TABLE: Final = 20310
LINKS: Final = "links and routes"
FORWARDING: Final = "forwarding entries"
FILTER: Final = "filter"
SYSCTLS: Final = "sysctls"
PARTS: Final = (LINKS, FORWARDING, FILTER, SYSCTLS)
DEVICE_V6: Final = "overlay-v6.1"
LINKS_V6: Final = "IPv6 links and routes"
FORWARDING_V6: Final = "IPv6 forwarding entries"
SYSCTLS_V6: Final = "IPv6 sysctls"
PARTS_V6: Final = (LINKS_V6, FORWARDING_V6, SYSCTLS_V6)

Picture: TypeAlias = Mapping[str, str]  # part to text

_IP: Final = (
    "route show table all proto 79",
    f"neigh show dev {DEVICE} nud permanent",
    f"addr show dev {DEVICE}",
    f"-details link show dev {DEVICE}",
    "rule show",
)
_IP_V6: Final = tuple(command.replace(DEVICE, DEVICE_V6) for command in _IP)
_SYSCTLS: Final = ("ipv4/ip_forward",)
_SYSCTLS_V6: Final = ("ipv6/conf/all/forwarding",)
# The index of a device that was made anew; whether the kernel offloads.
_PASSING: Final = re.compile(r"^\d+: |(?<=gso_max_size )\d+|link-netnsid \d+", re.MULTILINE)


def picture(namespace: str, parts: Sequence[str] = PARTS) -> dict[str, str]:
    """Return everything the agent keeps, by part."""
    return {part: look(namespace, part) for part in parts}


def look(namespace: str, part: str) -> str:
    """Return one part; what is not there shows as the tool's own complaint."""
    if part == LINKS:
        return _sorted(_PASSING.sub("", ip_show(namespace, _IP)))
    if part == LINKS_V6:
        return _sorted(_PASSING.sub("", ip_show(namespace, _IP_V6, "-6")))
    if part in {FORWARDING, FORWARDING_V6}:
        device = DEVICE if part == FORWARDING else DEVICE_V6
        return _sorted(_run(["bridge", "-n", namespace, "fdb", "show", "dev", device]))
    if part == FILTER:
        command = ["nft", "--stateless", "list", "table", "inet", "overlay"]
        return netns.inside(namespace, lambda: _run(command))
    keys = _SYSCTLS if part == SYSCTLS else _SYSCTLS_V6
    return netns.inside(namespace, lambda: _sysctls(keys))


def is_same(namespace: str, wanted: Picture, first: str) -> bool:
    """Return whether all parts are as in ``wanted``; ``first`` is looked at first."""
    parts = sorted(wanted, key=lambda part: part != first)
    return all(look(namespace, part) == wanted[part] for part in parts)


def difference(wanted: Picture, seen: Picture) -> list[str]:
    """Return the lines that are missing, behind ``-``, and those too many, behind ``+``."""
    lines = []
    for part in wanted:
        before, now = set(wanted[part].splitlines()), set(seen[part].splitlines())
        lines += [f"- {line.strip()}" for line in sorted(before - now)]
        lines += [f"+ {line.strip()}" for line in sorted(now - before)]
    return lines


def ip_show(namespace: str, commands: Sequence[str], *options: str) -> str:
    """Return what several ``ip`` commands print, all from one process."""
    words = ["ip", "-n", namespace, *options, "-force", "-batch", "-"]
    return _run(words, "\n".join(commands) + "\n")


def _run(command: Sequence[str], stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _sysctls(keys: Sequence[str]) -> str:
    return "\n".join(f"{key} {Path('/proc/sys/net', key).read_text().strip()}" for key in keys)


def _sorted(text: str) -> str:
    return "\n".join(sorted(text.splitlines()))
