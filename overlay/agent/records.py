"""The files of attachments: one for each, and one with the addresses that were chosen last.

A pod waits while they are written, so that is done by hand, and once: what
changes later has its place in the file already.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from overlay.agent.files import replace_file
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment

# How a record ends, of one length: a write in place makes the one of the other.
_CUT_OFF: Final = b"false}"
_WHOLE: Final = b"true }"
_PAGE: Final = 4096  # bytes: a write within one is done whole, whenever the agent is killed
_LAST_LENGTH: Final = 64  # bytes: always whole, so that one write replaces it


def write_record(path: Path, attachment: Attachment) -> None:
    """Put the record of ``attachment`` there, whole or not at all. Raises OSError.

    It may be lost with the machine: so are pods.
    """
    replace_file(path, json.dumps(attachment.to_json()), sync=False)


def complete_record(path: Path, attachment: Attachment) -> Attachment:
    """Note in its record that ``attachment`` is complete; return it so. Raises OSError."""
    done = replace(attachment, is_complete=True)
    if not _end_anew(path):
        write_record(path, done)
    return done


def _end_anew(path: Path) -> bool:
    """Change the end of a record in place; return whether it ended as it should."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        place = os.lseek(file, 0, os.SEEK_END) - len(_CUT_OFF)
        if place < 0 or place % _PAGE > _PAGE - len(_CUT_OFF):
            return False
        if os.pread(file, len(_CUT_OFF), place) != _CUT_OFF:
            return False
        return os.pwrite(file, _WHOLE, place) == len(_WHOLE)
    finally:
        os.close(file)


def write_last(path: Path, addresses: Iterable[IPAddress]) -> None:
    """Write which addresses were chosen last, in place: a few microseconds. Raises OSError."""
    text = " ".join(map(str, addresses)).ljust(_LAST_LENGTH - 1) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(file, text.encode("ascii"), 0)
    finally:
        os.close(file)


def read_last(path: Path) -> tuple[IPAddress, ...]:
    """Return the addresses that were chosen last before the restart; none where that is lost."""
    try:
        return tuple(ip_address(word) for word in path.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return ()
