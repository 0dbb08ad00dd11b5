"""Events on disk: JSON lines in two files that take turns, for root alone.

Nothing is synced: events survive the agent, not the machine, as all in the
state directory. A line that cannot be read is passed over; the lines around
it are kept.
"""

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from overlay.model.event import FILE, Event, parse_lines

_MOST_BYTES: Final = 1 << 20  # of one of the two files; some 4,000 events
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Journal:
    """The files ``events.jsonl`` and ``events.jsonl.1``, the older, in ``directory``."""

    def __init__(self, directory: Path, most_bytes: int = _MOST_BYTES) -> None:
        self._path = directory / FILE
        self._older = directory / f"{FILE}.1"
        self._most_bytes = most_bytes

    def load(self) -> tuple[list[Event], int]:
        """Return the events that can be read, by number, and how many lines cannot.

        Raises OSError for a file that is there and cannot be read.
        """
        paths = (self._older, self._path)
        return parse_lines(line for path in paths for line in _lines(path, 2 * self._most_bytes))

    def append(self, events: Sequence[Event]) -> None:
        """Write ``events``; repeating it after an error does no harm. Raises OSError."""
        lines = [json.dumps(event.to_json(), default=str) + "\n" for event in events]
        data = "".join(lines).encode()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, _FLAGS, 0o600)
        try:
            size = _size(file)
            if size and size + len(data) > self._most_bytes:
                self._path.replace(self._older)
                os.close(file)
                file = -1
                file = os.open(self._path, _FLAGS, 0o600)
                size = 0
            if size and os.pread(file, 1, size - 1) != b"\n":
                data = b"\n" + data  # of a write that was cut off
            written = os.write(file, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            if file >= 0:
                os.close(file)


def _size(file: int) -> int:
    """Return a regular file's size in bytes, and make it root's alone. Raises OSError."""
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if stat.S_IMODE(about.st_mode) != 0o600:
        os.fchmod(file, 0o600)
    return about.st_size


def _lines(path: Path, most_bytes: int) -> list[bytes]:
    """Return the lines of the last ``most_bytes``, none where there is no file. Raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    with os.fdopen(file, "rb") as reader:
        size = _size(reader.fileno())
        reader.seek(max(0, size - most_bytes))
        return reader.read(most_bytes).split(b"\n")
