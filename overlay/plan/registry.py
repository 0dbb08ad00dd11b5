"""Backends by name, from the entry-point group ``overlay.backends``."""

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
    name = config.backend.type
    point = _installed().get(name)
    if point is None:
        raise ConfigError(
            "Backend.Type",
            name,
            f"no such backend; installed are {', '.join(backend_names()) or 'none'}",
        )
    factory: type[Backend] = point.load()
    return factory(config, node)


def _installed() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points  # 10 ms, which can wait for the config

    return {point.name: point for point in entry_points(group=GROUP)}
