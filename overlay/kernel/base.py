"""What the agent asks of a kernel, real or fake."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from overlay.kernel.echoes import Echoes
from overlay.model.errors import OverlayError
from overlay.model.kernel import KernelObject, Key, Op, VxlanLink

NOTHING: Final[Mapping[Key, KernelObject]] = MappingProxyType({})


class KernelError(OverlayError):
    """The kernel refused something that is not one operation among many."""


class DeviceConflictError(KernelError):
    """A device of our name, VNI or port exists, and is not ours."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class OpFailure:
    """One operation that the kernel refused: ``errno`` and its own words, where it has some."""

    op: Op
    errno: int
    text: str
    is_conflict: bool = False  # a foreign device stands in the way

    def __str__(self) -> str:
        return f"{self.op}: {self.text}"


class Kernel(Protocol):
    """One network namespace, as far as the agent may see and change it."""

    @property
    def echoes(self) -> Echoes:
        """Return by what notices of changes made through this object are known."""

    def dump(self, known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        """Return what is ours: our devices and what is on them, our routes, our rules.

        What equals an object of ``known`` is that very object.
        A device is ours by its alias, a route by its protocol number, a rule
        by its protocol and table. What others made is not in the answer.
        Raises KernelError.
        """

    @property
    def mark(self) -> object:
        """Return what the last ``dump`` is told by, None before the first."""

    def look(self) -> object:
        """Return the mark that ``dump`` would have now; equal marks are equal dumps.

        Costs a fifth of a dump. Raises KernelError.
        """

    def devices(self) -> Sequence[VxlanLink]:
        """Return our devices alone, as ``dump`` would. Raises KernelError."""

    def apply(self, ops: Iterable[Op]) -> tuple[OpFailure, ...]:
        """Carry out ``ops`` in order; return those that failed, the others being done.

        What is already as wanted, or already gone, has not failed.
        """
