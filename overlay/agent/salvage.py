"""What a record that cannot be read still tells: cut off, damaged, or of a newer version.

An address that may be in use must not be given again, so what can be made out
counts, however little it is.
"""

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from overlay.model.address import IPAddress
from overlay.model.attachment import FORMAT
from overlay.model.node import POD_LINK_PREFIX

log = logging.getLogger(__name__)

# The first quoted strings behind the key, whatever follows or is missing.
_ADDRESSES: Final = re.compile(r'"addresses"\s*:\s*\[((?:\s*"[0-9A-Fa-f.:]{2,45}"\s*,?)*)')
_LINK: Final = re.compile(r'"link"\s*:\s*"([^"\\]{0,15})"')
_TEXT: Final = re.compile(r'"([^"]*)"')
_LINK_NAME: Final = 15  # bytes; a record's file and its pod's link are named by one hash
_LONGEST: Final = 64 * 1024  # characters that are looked at


@dataclass(frozen=True, slots=True)
class Salvage:
    """``link`` is None where none is told, empty where there was none (addresses alone)."""

    addresses: tuple[IPAddress, ...] = ()
    link: str | None = None
    is_newer: bool = False


def salvage(content: bytes) -> Salvage:
    """Return what can be made out of a record that cannot be read.

    >>> salvage(b'{"format": 1, "addresses": ["10.244.3.7", "fd0')
    Salvage(addresses=(IPv4Address('10.244.3.7'),), link=None, is_newer=False)
    """
    text = content[:_LONGEST].decode("utf-8", errors="replace")
    listed = _ADDRESSES.search(text)
    link = _LINK.search(text)
    addresses = []
    for found in _TEXT.findall(listed[1]) if listed is not None else ():
        try:
            addresses.append(ip_address(found))
        except ValueError:
            continue
    return Salvage(tuple(addresses), link[1] if link is not None else None, _is_newer(text))


def _is_newer(text: str) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    number = document.get("format") if isinstance(document, dict) else None
    return isinstance(number, int) and number > FORMAT


class HeldAddresses:
    """Addresses in use, or perhaps in use, without a record that can be read.

    Not for several threads at once. What belongs together is keyed by the
    name that the pod's link has or would have.
    """

    def __init__(self) -> None:
        self._unread: dict[Path, Salvage] = {}
        self._by_link: dict[str, tuple[IPAddress, ...]] = {}

    def addresses(self) -> Sequence[IPAddress]:
        """Return what must not be given to anybody."""
        return [address for held in self._by_link.values() for address in held]

    def is_about(self, path: Path) -> bool:
        """Return whether the attachment with that record is, or may be, there already."""
        return path in self._unread or _link_of(path) in self._by_link

    def unread_links(self) -> frozenset[str]:
        """Return the names that the links of records that cannot be read have or would have."""
        return frozenset(map(_link_of, self._unread))

    def note(self, path: Path, reason: str) -> None:
        """Keep what can be made out of the record at ``path``, which is not read for ``reason``."""
        try:
            found = salvage(path.read_bytes())
        except OSError:
            found = Salvage()
        self._unread[path] = found
        if found.addresses:
            self._by_link[_link_of(path)] = found.addresses
        log.warning(
            "attachment in %s is not read: %s; %s stay in use until its pod is deleted",
            path,
            reason,
            _spelled(found.addresses),
        )

    def settle(self, in_use: Mapping[str, Sequence[IPAddress]], known: Collection[str]) -> None:
        """Bring it in step with the kernel: ``in_use`` has the addresses behind each pod's link.

        ``known`` are the links whose attachments are read.
        """
        for path, found in tuple(self._unread.items()):
            if found.link and not found.is_newer and _link_of(path) not in in_use:
                log.info("the pod of %s is gone; its addresses are free again", path)
                self.forget(path)
                with contextlib.suppress(OSError):
                    path.unlink()
        unread = {_link_of(path): found for path, found in self._unread.items()}
        for name in self._by_link.keys() - in_use.keys() - unread.keys():
            log.info("link %s is gone; its addresses are free again", name)
            del self._by_link[name]
        for name in in_use.keys() - known:
            said = unread[name].addresses if name in unread else ()
            addresses = tuple(dict.fromkeys((*said, *in_use[name])))
            if self._by_link.get(name, ()) != addresses:
                self._by_link[name] = addresses
                log.warning(
                    "link %s has no attachment that can be read; %s stay in use until it is gone",
                    name,
                    _spelled(addresses),
                )

    def forget(self, path: Path) -> None:
        """Free what the attachment with the record at ``path`` held, if anything."""
        self._unread.pop(path, None)
        self._by_link.pop(_link_of(path), None)


def _link_of(path: Path) -> str:
    return f"{POD_LINK_PREFIX}{path.stem}"[:_LINK_NAME]


def _spelled(addresses: Iterable[IPAddress]) -> str:
    return ", ".join(map(str, addresses)) or "no addresses"
