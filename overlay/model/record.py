"""Small JSON objects of which there are thousands with the same names."""

from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, Final

_MOST: Final = 64  # forms whose names are shared; other nodes write what they like

_NAMES: Final[dict[tuple[str, ...], tuple[str, ...]]] = {}


class Record(Mapping[str, Any]):
    """A JSON object that never changes: names that others have too are not kept again.

    104 bytes for two members, where a dictionary has 184.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, found: Mapping[str, Any]) -> None:
        names = tuple(found)
        known = _NAMES.get(names)
        if known is None:
            known = tuple(map(intern, names))
            if len(_NAMES) < _MOST:
                _NAMES[known] = known
        self._names, self._values = known, tuple(found.values())

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(dict(self))
