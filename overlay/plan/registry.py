"""Backends by name, from the entry-point group ``overlay.backends``."""

import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from overlay.model.errors import ConfigError
from overlay.model.network import NetworkConfig
from overlay.model.node import NodeIdentity
from overlay.plan.backend import Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "overlay.backends"


def backend_names() -> tuple[str, ...]:
    """Return the names of the backends that are installed."""
    return tuple(sorted(_installed()))


def load_backend(config: NetworkConfig, node: NodeIdentity) -> Backend:
    """Return the backend that ``config`` names.

    Raises ConfigError for a backend that is not installed, or that does not
    take its options.
    """
    factory = _factory(config.backend.type)
    if factory is None:
        raise ConfigError(
            "Backend.Type",
            config.backend.type,
            f"no such backend; installed are {', '.join(backend_names()) or 'none'}",
        )
    return factory(config, node)


def _factory(name: str) -> type[Backend] | None:
    reference = _reference(name)
    if reference is None:
        point = _installed().get(name)
        return point.load() if point is not None else None
    module, _, attribute = reference.partition(":")
    factory: type[Backend] = attrgetter(attribute)(import_module(module))
    return factory


def _reference(name: str) -> str | None:
    """Return ``MODULE:CLASS`` of a backend from the file that lists a distribution's entry points.

    None where no such file names it: ``importlib.metadata`` finds more, but takes
    10 ms and 1.6 MiB with all that it loads. Format: packaging.python.org,
    specifications, entry points.
    """
    for place in map(Path, sys.path):
        for file in sorted(place.glob("*-info/entry_points.txt")):
            group = ""
            for line in _lines(file):
                found, _, reference = line.partition("=")
                if line.startswith("["):
                    group = line
                elif group == f"[{GROUP}]" and found.rstrip() == name:
                    return reference.partition("[")[0].strip()  # behind it stand extras
    return None


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):  # somebody else's: not ours to complain about
        return []


def _installed() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points  # see ``_reference``

    return {point.name: point for point in entry_points(group=GROUP)}
