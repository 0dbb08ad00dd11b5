"""Configuration files with drop-ins, as systemd and NetworkManager read them.

Source: systemd.syntax(7), NetworkManager.conf(5): of one name, the file in the
folder that comes first hides the others; later files win over earlier ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TRUE = frozenset({"1", "yes", "true", "on"})
_FALSE = frozenset({"0", "no", "false", "off"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One ``key = value`` with the section that it stands in."""

    file: Path
    section: str
    key: str
    value: str


def drop_ins(root: Path, folders: Iterable[str], pattern: str) -> Sequence[Path]:
    """Return the files in ``folders`` below ``root`` that count, by name."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in (root / folder).glob(pattern):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def settings(files: Iterable[Path]) -> Iterator[Setting]:
    """Yield every setting in order. Raises OSError for a file that cannot be read."""
    for file in files:
        section = ""
        for line in file.read_text(errors="replace").splitlines():
            text = line.strip()
            if not text or text[0] in "#;":
                continue
            if text[0] == "[" and text[-1] == "]":
                section = text[1:-1]
                continue
            key, separator, value = text.partition("=")
            if separator:
                yield Setting(file, section, key.strip(), value.strip())


def boolean(text: str, *, default: bool) -> bool:
    """Return what a switch says; ``default`` for what is neither yes nor no."""
    word = text.strip().lower()
    return word in _TRUE if word in _TRUE | _FALSE else default
