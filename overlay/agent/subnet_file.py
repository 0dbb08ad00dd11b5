"""The file that tells flannel's CNI plugin, and whoever else reads it, of this node's subnet."""

from collections.abc import Callable
from pathlib import Path

from overlay.agent.files import format_subnet_file
from overlay.plan.planner import Site


class SubnetFile:
    """Written when it would say something else than before; ``write`` replaces a file whole."""

    def __init__(self, path: Path, write: Callable[[Path, str], None]) -> None:
        self._path = path
        self._write = write
        self._text = ""

    def tell(self, site: Site) -> list[str]:
        """Bring the file in step; return what is wrong, or nothing. Repeating it is safe."""
        text = format_subnet_file(site.config, site.own.subnet, site.backend.mtu(site.underlay))
        if text == self._text:
            return []
        try:
            self._write(self._path, text)
        except OSError as exc:
            return [f"--subnet-file {self._path}: {exc.strerror}"]
        self._text = text
        return []
