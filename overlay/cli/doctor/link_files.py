"""Files that say what becomes of a link: ``.network`` and ``.link``, with their drop-ins.

systemd.network(5), systemd.link(5): of all files the first, by name, whose
[Match] takes the link counts, and no other. ``NAME.network.d/*.conf`` add to a
file.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from overlay.cli.doctor.keyfile import Setting, drop_ins, settings

_FOLDERS: Final = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")


def file_for(root: Path, link: str, suffix: str) -> tuple[Path, Sequence[Setting]] | None:
    """Return the file that counts for a VXLAN device of that name, and what it and drop-ins say.

    ``suffix`` is ``.network`` or ``.link``. Raises OSError.
    """
    folders = [f"{folder}/network" for folder in _FOLDERS]
    for file in drop_ins(root, folders, f"*{suffix}"):
        more = drop_ins(root, [f"{folder}/{file.name}.d" for folder in folders], "*.conf")
        found = list(settings([file, *more]))
        if _takes([setting for setting in found if setting.section == "Match"], link):
            return file, found
    return None


def _takes(match: Sequence[Setting], link: str) -> bool:
    """Return whether a [Match] takes a VXLAN device of that name; other conditions count as no.

    One that says nothing takes every link.
    """
    wanted: dict[str, list[str]] = {}
    for setting in match:
        # Said again, a list grows; said with nothing behind it, it begins anew.
        words = wanted.setdefault(setting.key, [])
        words += _words(setting.value)
        if not setting.value:
            words.clear()
    return all(_holds(key, words, link) for key, words in wanted.items() if words)


def _holds(key: str, words: Sequence[str], link: str) -> bool:
    if key in {"Name", "OriginalName"}:
        values = [link]
    elif key in {"Kind", "Driver"}:
        values = ["vxlan"]
    elif key == "Type":
        values = ["vxlan", "ether"]
    else:
        return False
    # One "!" before all of them turns the whole list round.
    is_negated = bool(words) and words[0].startswith("!")
    patterns = [word.removeprefix("!") for word in words]
    plain = [p for p, w in zip(patterns, words, strict=True) if is_negated or not w.startswith("!")]
    barred = [p for p, w in zip(patterns, words, strict=True) if w.startswith("!")]
    is_listed = any(fnmatchcase(value, p) for value in values for p in plain)
    if is_negated:
        return not is_listed
    return is_listed and not any(fnmatchcase(value, p) for value in values for p in barred)


def _words(text: str) -> Iterator[str]:
    return (word.strip("\"'") for word in text.split())
