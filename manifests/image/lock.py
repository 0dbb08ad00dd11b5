"""Prints the image's lock: of requirements.lock what the fabric needs where it runs.

``python3 lock.py REQUIREMENTS SETUP``. What belongs to an extra stays out. Who
asks for a package stands in the comments that pip-compile leaves.
"""

import configparser
import re
import sys
from pathlib import Path
from typing import Final

_HEAD: Final = "# Of requirements.lock what the image needs; `make lock` writes both.\n"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_OURS: Final = "overlay-fabric (setup.cfg)"


def image_lock(requirements: str, setup: str) -> str:
    """Return the lock, in the order of ``requirements``, without comments.

    Raises ValueError for a direct requirement that ``requirements`` has not got.
    """
    entries = _entries(requirements)
    needed = _direct(setup)
    if absent := sorted(needed - entries.keys()):
        msg = f"requirements.lock has no {', '.join(absent)}; run `make lock`"
        raise ValueError(msg)
    while more := {n for n, (_, askers) in entries.items() if askers & needed} - needed:
        needed |= more
    return _HEAD + "".join(text for name, (text, _) in entries.items() if name in needed)


def _direct(setup: str) -> set[str]:
    """Return what setup.cfg asks for without an extra."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    found = (_NAME.match(line) for line in config["options"]["install_requires"].split("\n"))
    return {_normal(match[0]) for match in found if match}


def _entries(requirements: str) -> dict[str, tuple[str, set[str]]]:
    """Return by name an entry's lines, and the names of those who ask for it."""
    found: dict[str, tuple[str, set[str]]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", requirements):
        name = _NAME.match(block)
        if name is None:
            continue
        lines = block.splitlines(keepends=True)
        notes = [line.strip("# \n").removeprefix("via").strip() for line in lines if "#" in line]
        askers = {_normal(note) for note in notes if note and note != _OURS}
        text = "".join(line for line in lines if "#" not in line)
        found[_normal(name[0])] = (text if text.endswith("\n") else f"{text}\n", askers)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.stdout.write(image_lock(Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_text()))
