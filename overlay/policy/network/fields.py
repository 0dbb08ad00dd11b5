"""Documents that others wrote, read field by field, with errors that say where.

A ``Field`` knows its path in the object, so that whoever refuses its value can
name it as the API server does: ``spec.ingress[0].from[1].ipBlock.cidr``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overlay.model.errors import OverlayError, shown


class PolicyFormatError(OverlayError):
    """An object says what the API server would refuse, or what no object says.

    ``subject`` names the object, ``path`` the field, ``value`` what it held,
    ``problem`` what is wrong and the way out.
    """

    exit_code = 2

    def __init__(self, subject: str, path: str, value: object, problem: str) -> None:
        self.subject = subject
        self.path = path
        self.value = value
        self.problem = problem
        where = f"{path} {shown(value)}: " if path else ""
        super().__init__(f"{subject}: {where}{problem}")


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a document. ``strict`` refuses keys that the object does not have."""

    value: Any
    path: str
    subject: str
    strict: bool = True

    def error(self, problem: str) -> PolicyFormatError:
        """Return the error that names this field."""
        return PolicyFormatError(self.subject, self.path, self.value, problem)

    def keys(self, *known: str) -> "Field":
        """Return the field itself: a mapping with none but ``known`` keys, where strict."""
        found = self.mapping()
        if self.strict:
            for key in found:
                if key not in known:
                    path = f"{self.path}.{key}" if self.path else str(key)
                    raise PolicyFormatError(
                        self.subject,
                        path if path.isprintable() else ascii(path),
                        found[key],
                        f"there is no such field; take it out, or use one of {', '.join(known)}",
                    )
        return self

    def mapping(self) -> Mapping[Any, Any]:
        """Return the value, which must be a mapping."""
        if not isinstance(self.value, Mapping):
            raise self.error("must be a mapping of fields")
        return self.value

    def get(self, key: str) -> "Field | None":
        """Return a key's field of a mapping, None where it is absent or null."""
        value = self.value.get(key)
        if value is None:
            return None
        path = f"{self.path}.{key}" if self.path else key
        return Field(value, path, self.subject, self.strict)

    def need(self, key: str) -> "Field":
        """Return a key's field. Raises PolicyFormatError where there is none."""
        found = self.get(key)
        if found is None:
            path = f"{self.path}.{key}" if self.path else key
            raise PolicyFormatError(self.subject, path, None, "is required; set it")
        return found

    def items(self) -> "list[Field]":
        """Return the fields of a list, in order."""
        if not isinstance(self.value, list | tuple):
            raise self.error("must be a list")
        return [
            Field(value, f"{self.path}[{number}]", self.subject, self.strict)
            for number, value in enumerate(self.value)
        ]

    def text(self) -> str:
        """Return the value, which must be text."""
        if not isinstance(self.value, str):
            raise self.error("must be text; put it in quotes")
        return self.value

    def integer(self, first: int, last: int) -> int:
        """Return the value, a whole number from ``first`` to ``last``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.error(f"must be a whole number from {first} to {last}, without quotes")
        if not first <= self.value <= last:
            raise self.error(f"must be from {first} to {last}")
        return self.value

    def one_of(self, *words: str) -> str:
        """Return the value, one of ``words``."""
        if self.value not in words:
            raise self.error(f"must be {' or '.join(words)}")
        return str(self.value)
