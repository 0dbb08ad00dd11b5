"""Whether there is room where the agent writes down which pod has which address."""

import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, warning

_LEAST_BYTES: Final = 1 << 20  # a record has less than 4 KiB, and is written beside the old one
_LOW_BYTES: Final = 16 << 20
_LEAST_FILES: Final = 256
_MIB: Final = 1 << 20


def _run(facts: Facts) -> Iterator[Verdict]:
    place = _existing(facts.places.state_dir)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    seen = f"{free / _MIB:.1f} MiB free at {place}"
    look = f"du -xh --max-depth=2 {quote(str(place))} | sort -h | tail"
    if found.f_flag & os.ST_RDONLY:
        yield error(
            f"{place} is read-only: no pod can be attached",
            f"mount -o remount,rw {quote(str(place))}",
        )
    elif free < _LEAST_BYTES:
        yield error(f"{seen}: no pod can be attached", look)
    elif found.f_files and found.f_favail < _LEAST_FILES:
        yield error(f"{found.f_favail} files can be made at {place} yet", look)
    elif free < _LOW_BYTES:
        yield warning(f"{seen}: when it is full no pod can be attached", look)
    else:
        yield Fine(seen)


def _existing(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


CHECK: Final = Check("disk", "room and files left at --state-dir", _run)
