"""Taking plugin and network configurations off the host again, and only ours."""

from collections.abc import Callable
from pathlib import Path

from overlay.model.conflist import PLUGIN, RUNTIMES, file_name
from overlay.model.document import parse_json
from overlay.model.errors import UsageError


def remove_config(folder: Path | None, told: Callable[[str], None]) -> list[str]:
    """Remove the files that ``cni install`` and the agent write, where they still name our plugin.

    Return a line for each. None for ``folder``: nothing is looked at.
    Repeating it is safe. Raises UsageError for one that cannot be removed.
    """
    if folder is None:
        return []
    paths = [folder / file_name(runtime) for runtime in RUNTIMES]
    return [line for path in paths if _is_ours(path) for line in _remove(path, told)]


def remove_plugin(folder: Path | None, told: Callable[[str], None]) -> list[str]:
    """Remove our plugin; as ``remove_config``."""
    if folder is None or not (folder / PLUGIN).is_file():
        return []
    return _remove(folder / PLUGIN, told)


def _is_ours(path: Path) -> bool:
    """Return whether a network configuration names our plugin first."""
    try:
        document = parse_json(path.read_bytes())
        return bool(document["plugins"][0]["type"] == PLUGIN)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _remove(path: Path, told: Callable[[str], None]) -> list[str]:
    try:
        path.unlink()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise UsageError(f"node reset: {path}: {exc.strerror}") from exc
    line = f"file {path}"
    told(line)
    return [line]
