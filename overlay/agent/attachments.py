"""The attachments of this node: one file each, so that a restart forgets none.

They die with the node's boot, as the pods do: their files belong in /run, and
those of another boot are not read. A record that cannot be read is kept, and
what it, or the kernel, tells of its addresses is not given to anybody else.
"""

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from overlay.agent.files import boot_id, write_file
from overlay.agent.records import complete_record, read_last, write_last, write_record
from overlay.agent.salvage import HeldAddresses
from overlay.ipam.pool import Demand, Pool
from overlay.ipam.spans import Span
from overlay.model.address import IPAddress, IPNetwork
from overlay.model.attachment import (
    Attachment,
    AttachmentFormatError,
    AttachmentKey,
    parse_attachment,
)
from overlay.model.document import parse_json
from overlay.model.errors import OverlayError
from overlay.model.subnet import Subnet

log = logging.getLogger(__name__)

_MARKER: Final = "boot_id"
_LAST: Final = "last"  # the addresses that were chosen last, one for each family


class AttachmentExistsError(OverlayError):
    """There is an attachment under that key; ``attachment`` is it."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        super().__init__(f"{attachment.key} is attached already")


class AttachmentGoneError(OverlayError):
    """An attachment was released while it was being made."""

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(f"{attachment.key} was released while it was being attached")


class AttachmentUnreadError(OverlayError):
    """There is a record under that key, or a link, that is not understood."""

    def __init__(self, key: AttachmentKey) -> None:
        super().__init__(f"{key} was attached before, and its record cannot be read")


class Attachments:
    """All attachments, for any thread; ``directory`` is made when the first one is written.

    ``reserved`` addresses are given to those alone who ask for them by name.
    ``others`` returns what other plugins hold at this moment: that is given to
    nobody. It raises OSError.
    """

    def __init__(
        self,
        directory: Path,
        reserved: Iterable[Span] = (),
        others: Callable[[], frozenset[IPAddress]] = frozenset,
    ) -> None:
        self._directory = directory
        self._others = others
        self._lock = threading.Lock()
        self._by_key: dict[AttachmentKey, Attachment] = {}
        self._held = HeldAddresses()
        self._of_others: frozenset[IPAddress] = frozenset()  # as last looked at
        self._counted: frozenset[IPAddress] = frozenset()  # of those held, in the pool
        self._is_marked = False  # with this boot
        self._pool = Pool(reserved)
        self._load(reserved)

    def get(self, key: AttachmentKey) -> Attachment | None:
        """Return the attachment under ``key``, or None."""
        return self._by_key.get(key)

    def list(self, network: str | None = None) -> list[Attachment]:
        """Return all attachments, or those of one network, in the order they were made.

        Of those from before a restart, what was made within some milliseconds
        may have changed places.
        """
        with self._lock:
            found = self._by_key.values()
            return [a for a in found if network is None or a.key.network == network]

    def outside(self, subnet: Subnet) -> Sequence[Attachment]:
        """Return those that have an address outside ``subnet``, in the order they were made."""
        networks = tuple(subnet.networks())
        return [
            attachment
            for attachment in self.list()
            if not all(any(a in network for network in networks) for a in attachment.addresses)
        ]

    def held(self) -> Sequence[IPAddress]:
        """Return the addresses that are in use, or may be, without a record that can be read."""
        with self._lock:
            return self._held.addresses()

    def known_links(self) -> frozenset[str]:
        """Return the names of the links that there is a record of, be it one that is not read."""
        with self._lock:
            return self._held.unread_links() | {a.link for a in self._by_key.values()}

    def settle(self, look: Callable[[], Mapping[str, Sequence[IPAddress]]]) -> None:
        """Keep what the kernel says is in use: ``look`` returns the addresses behind each link.

        Repeating it is safe: links that are gone hold nothing any more. It
        looks under the lock: a link is there only while its attachment is.
        """
        with self._lock:
            known = {attachment.link for attachment in self._by_key.values()}
            self._held.settle(look(), known)
            self._count_held()

    def usage(self, network: IPNetwork) -> tuple[int, int]:
        """Return how many addresses of ``network`` are in use, and of how many."""
        with self._lock:
            return self._pool.usage(network)

    def add(
        self,
        subnet: Subnet,
        demand: Demand,
        key: AttachmentKey,
        make: Callable[[tuple[IPAddress, ...]], Attachment],
    ) -> Attachment:
        """Allocate addresses, write the attachment that ``make`` returns, and return it.

        On an error nothing is kept. Raises AttachmentExistsError,
        AttachmentUnreadError, the errors of ``overlay.ipam.pool``, and OSError
        when it cannot be written.
        """
        with self._lock:
            if key in self._by_key:
                raise AttachmentExistsError(self._by_key[key])
            if self._held.is_about(self._path(key)):
                raise AttachmentUnreadError(key)
            self._count_held(self._others())
            addresses = self._pool.allocate(subnet, demand)
            try:
                attachment = make(addresses)
                self._write(attachment)
                write_last(self._directory / _LAST, self._pool.last)
            except BaseException:
                self._forget(key)
                self._pool.release(addresses)
                raise
            self._by_key[key] = attachment
            return attachment

    def complete(self, attachment: Attachment) -> Attachment:
        """Note that all of it is there; until then the next start takes it for cut off.

        Raises AttachmentGoneError when it was released meanwhile.
        """
        with self._lock:
            if self._by_key.get(attachment.key) is not attachment:
                raise AttachmentGoneError(attachment)
            done = complete_record(self._path(attachment.key), attachment)
            self._by_key[done.key] = done
        return done

    def release(self, key: AttachmentKey) -> Attachment | None:
        """Forget the attachment under ``key`` and return it; None when there is none."""
        with self._lock:
            return self._forget(key)

    def undo(self, attachment: Attachment) -> None:
        """Forget ``attachment``, but not another one that took its key meanwhile."""
        with self._lock:
            if self._by_key.get(attachment.key) is attachment:
                self._forget(attachment.key)

    def _forget(self, key: AttachmentKey) -> Attachment | None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._held.forget(path)
        found = self._by_key.pop(key, None)
        if found is not None:
            self._pool.release(a for a in found.addresses if a not in self._counted)
        self._count_held()
        return found

    def _count_held(self, others: frozenset[IPAddress] | None = None) -> None:
        """Bring the pool in step with what is held without a record that can be read.

        ``others`` is what other plugins hold, None where that was not looked at.
        """
        if others is not None:
            self._of_others = others
        now = frozenset(self._held.addresses()) | self._of_others
        if now == self._counted:
            return
        known = {address for each in self._by_key.values() for address in each.addresses}
        self._pool.release(self._counted - now - known)
        self._pool.hold(now)
        self._counted = now

    def _path(self, key: AttachmentKey) -> Path:
        return _record_path(self._directory, key)

    def _load(self, reserved: Iterable[Span]) -> None:
        if not self._directory.is_dir():
            return
        boot, marked = boot_id(), _read_marker(self._directory / _MARKER)
        self._is_marked = marked == boot
        if not marked:
            log.warning(
                "%s cannot be read; attachments are taken for those of this boot",
                self._directory / _MARKER,
            )
        for leftover in self._directory.glob(".*.json.*"):  # of a write that was cut off
            _remove(leftover)
        for path in sorted(self._directory.glob("*.json"), key=_age):
            if marked and marked != boot:
                _remove(path)
                continue
            try:
                found = parse_attachment(parse_json(path.read_bytes()))
            except (ValueError, OSError, AttachmentFormatError) as exc:
                self._held.note(path, str(exc))
                continue
            self._by_key[found.key] = found
        if not marked or marked == boot:
            self._pool = Pool(reserved, read_last(self._directory / _LAST))
        for attachment in self._by_key.values():
            self._pool.hold(attachment.addresses)
        self._count_held()

    def _write(self, attachment: Attachment) -> None:
        if not self._is_marked:
            write_file(self._directory / _MARKER, boot_id() + "\n")
            self._is_marked = True
        write_record(self._path(attachment.key), attachment)


# A pod's ADD asks for it three times.
@functools.lru_cache(maxsize=1024)
def _record_path(directory: Path, key: AttachmentKey) -> Path:
    seed = f"{key.network}\0{key.container}\0{key.interface}".encode()
    return directory / f"{hashlib.sha256(seed).hexdigest()[:32]}.json"


def _read_marker(path: Path) -> str:
    """Return the boot that the files are of, empty where that cannot be told."""
    try:
        return str(UUID(path.read_text(encoding="ascii").strip()))
    except (OSError, ValueError):
        return ""


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        log.warning("%s cannot be removed: %s", path, exc.strerror)


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
