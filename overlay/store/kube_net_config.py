"""The network config of a cluster: a file, mounted from a config map as flannel's is.

Kubernetes changes such a file by a symbolic link, some time after the config
map: it is read again now and then rather than watched.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.model.errors import ConfigError
from overlay.model.network import NetworkConfig, parse_network_config


@dataclass(frozen=True, slots=True)
class NetConfig:
    """What the file says: a config, or why it cannot be used; neither where there is no file."""

    config: NetworkConfig | None = None
    error: str | None = None


NO_CONFIG: Final = NetConfig()


class NetConfigFile:
    """One file; ``read`` parses it only when it changed. Any thread may call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._text: bytes | None = None
        self._known = NO_CONFIG

    def read(self) -> NetConfig:
        """Return what the file says now; the same object until it changes."""
        with self._lock:
            return self._read()

    def _read(self) -> NetConfig:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            self._text, self._known = None, NO_CONFIG
            return self._known
        except OSError as exc:
            error = f"--net-config-path {self.path}: {exc.strerror or exc}"
            if error != self._known.error:
                self._text, self._known = None, NetConfig(error=error)
            return self._known
        if text != self._text:
            self._text, self._known = text, self._parse(text)
        return self._known

    def _parse(self, text: bytes) -> NetConfig:
        try:
            return NetConfig(parse_network_config(text))
        except ConfigError as exc:
            return NetConfig(error=f"{self.path}: {exc}")
