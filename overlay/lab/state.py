"""What is on disk of a lab: enough to take it down, whatever happened to ``up``.

``/run/overlay-lab/NAME/state.json`` is written before the first namespace is
made and again after every step, each time as a whole.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from overlay.lab.errors import LabError, LabExistsError, NoLabError
from overlay.lab.processes import Process
from overlay.lab.topology import LabOptions
from overlay.model.document import parse_json

STATE_ROOT: Final = Path("/run/overlay-lab")
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class LabState:
    """The lab's options, how far ``up`` came, and the processes it started."""

    options: LabOptions
    is_ready: bool = False
    processes: tuple[Process, ...] = field(default=())

    def with_processes(self, processes: Iterable[Process]) -> "LabState":
        """Return the state with more processes."""
        return replace(self, processes=(*self.processes, *processes))


@dataclass(frozen=True, slots=True)
class StateDir:
    """The directory of one lab."""

    path: Path

    @classmethod
    def of(cls, name: str, root: Path = STATE_ROOT) -> "StateDir":
        """Return the directory of the lab called ``name``; it need not exist."""
        return cls(root / name)

    @property
    def exists(self) -> bool:
        """Return whether there is a lab of this name, whole or in part."""
        return self.path.is_dir()

    def node(self, name: str) -> Path:
        """Return a node's own directory."""
        return self.path / "nodes" / name

    def subnet_file(self, node: str) -> Path:
        """Return where a node's agent writes its subnet file."""
        return self.node(node) / "subnet.env"

    def log(self, node: str) -> Path:
        """Return where a node's agent logs to."""
        return self.node(node) / "overlayd.log"

    def create(self, options: LabOptions, nodes: Iterable[str]) -> LabState:
        """Make the directories and the first state. Raises LabExistsError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError as exc:
            name = options.name
            msg = f"lab {name} is up already; `overlayctl lab down --name {name}` takes it down"
            raise LabExistsError(msg) from exc
        for node in nodes:
            self.node(node).mkdir(mode=0o700, parents=True)
        state = LabState(options)
        self.write(state)
        return state

    def read(self) -> LabState:
        """Return the state. Raises NoLabError, and LabError for one that cannot be read."""
        try:
            document = parse_json((self.path / "state.json").read_bytes())
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                msg = f"{self.path / 'state.json'}: written by another version"
                raise LabError(msg)
            return LabState(
                options=LabOptions.from_json(document["options"]),
                is_ready=document["ready"] is True,
                processes=tuple(Process.from_json(p) for p in document["processes"]),
            )
        except FileNotFoundError as exc:
            msg = f"lab {self.path.name} is not up; `overlayctl lab up` makes one"
            raise NoLabError(msg) from exc
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            msg = f"{self.path / 'state.json'} cannot be read: {exc!r}"
            raise LabError(msg) from exc

    def write(self, state: LabState) -> None:
        """Write the state as a whole: a reader sees the old one or the new one."""
        document = {
            "format": _FORMAT,
            "options": state.options.to_json(),
            "ready": state.is_ready,
            "processes": [process.to_json() for process in state.processes],
        }
        draft = self.path / "state.json.new"
        draft.write_text(json.dumps(document, indent=2))
        draft.rename(self.path / "state.json")

    def remove(self) -> None:
        """Remove the directory; repeating it is safe."""
        if self.path.exists():
            shutil.rmtree(self.path)
        try:
            self.path.parent.rmdir()  # the last lab takes the root with it
        except OSError:
            return
