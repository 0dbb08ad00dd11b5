"""A network configuration list, executed as libcni does it: each plugin in order, a process each.

Source: CNI specification 1.1.0, sections 3 and 4, and libcni's api.go. The
Go library itself has no command in Debian, so this stands in for it: what a
plugin is given and in which order is all that a plugin can see of a runtime.
"""

import json
import os
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

REFERENCE_PLUGINS: Final = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
_TIMEOUT_S: Final = 60


class ChainError(Exception):
    """A plugin of the chain failed; ``document`` is the error that it printed."""

    def __init__(self, plugin: str, command: str, document: Any) -> None:
        self.plugin, self.document = plugin, document
        super().__init__(f"{plugin}: {command}: {document}")


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """What a runtime knows of one interface of a container."""

    container: str
    netns: str
    interface: str = "eth0"
    args: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)


class Chain:
    """One configuration list on one node, ``namespace`` being the node's by name.

    Results are kept from ADD on, for CHECK, DEL and GC. A runtime may edit
    what is kept in ``results``, as Multus does.
    """

    def __init__(self, conflist: Mapping[str, Any], namespace: str, path: Sequence[Path]) -> None:
        self.conflist, self._namespace, self._path = conflist, namespace, path
        self.results: dict[Attachment, dict[str, Any]] = {}

    def add(self, attachment: Attachment) -> dict[str, Any]:
        """Execute ADD of every plugin and return the last result.

        Raises ChainError at the first that fails; a runtime then asks for DEL.
        """
        result: dict[str, Any] = {}
        for plugin in self.conflist["plugins"]:
            result = self._execute("ADD", plugin, attachment, result)
        self.results[attachment] = result
        return result

    def check(self, attachment: Attachment, without: Container[str] = ()) -> None:
        """Execute CHECK of every plugin with the result that was kept. Raises ChainError."""
        for plugin in self.conflist["plugins"]:
            if plugin["type"] not in without:
                self._execute("CHECK", plugin, attachment, self.results[attachment])

    def delete(self, attachment: Attachment) -> None:
        """Execute DEL of every plugin, the last first. Raises ChainError."""
        previous = self.results.get(attachment, {})
        for plugin in reversed(self.conflist["plugins"]):
            self._execute("DEL", plugin, attachment, previous)
        self.results.pop(attachment, None)

    def collect(self, valid: Sequence[Attachment]) -> None:
        """DEL for all that is kept and not valid; then GC, from version 1.1.0 on."""
        for attachment in [kept for kept in self.results if kept not in valid]:
            self.delete(attachment)
        if self.conflist["cniVersion"] == "1.1.0":
            told = [{"containerID": a.container, "ifname": a.interface} for a in valid]
            more = {"cni.dev/valid-attachments": told, "cni.dev/attachments": told}
            for plugin in self.conflist["plugins"]:
                self._execute("GC", {**plugin, **more}, Attachment("", "", ""), {})

    def _execute(
        self,
        command: str,
        plugin: Mapping[str, Any],
        attachment: Attachment,
        previous: Mapping[str, Any],
    ) -> dict[str, Any]:
        # libcni sets every variable, empty where it has no value.
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": attachment.interface,
            "CNI_ARGS": attachment.args,
            "CNI_PATH": ":".join(map(str, self._path)),
        }
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self._namespace}", self._find(plugin["type"])],
            input=json.dumps(self._config(plugin, attachment, previous)),
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        answer = json.loads(done.stdout) if done.stdout else {}
        if done.returncode != 0:
            raise ChainError(plugin["type"], command, answer or done.stderr)
        assert isinstance(answer, dict)
        return answer

    def _find(self, plugin: str) -> str:
        for folder in self._path:
            if os.access(folder / plugin, os.X_OK):
                return str(folder / plugin)
        msg = f"no plugin {plugin} in {self._path}"
        raise AssertionError(msg)

    def _config(
        self,
        plugin: Mapping[str, Any],
        attachment: Attachment,
        previous: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return a plugin's own configuration with what libcni puts into it."""
        own = {"name": self.conflist["name"], "cniVersion": self.conflist["cniVersion"]}
        config = {**plugin, **own}
        able = [name for name, wanted in plugin.get("capabilities", {}).items() if wanted]
        runtime = {n: v for n, v in attachment.capabilities.items() if n in able}
        if runtime:
            config["runtimeConfig"] = runtime
        if previous:
            config["prevResult"] = previous
        return config
