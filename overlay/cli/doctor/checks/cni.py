"""Whether the runtime takes our network configuration: it takes the first one by name.

Source: libcni's ConfFiles (.conf, .conflist, .json, sorted), as containerd and
CRI-O use it.
"""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.model.document import parse_json

_SUFFIXES: Final = frozenset({".conf", ".conflist", ".json"})
# flannel's plugin stands on our subnet.env, and is as good.
_OURS: Final = frozenset({"overlay", "flannel"})


def _run(facts: Facts) -> Iterator[Verdict]:
    folder = facts.places.cni_conf_dir
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    except FileNotFoundError:
        files = []
    mine = next((path for path in files if _types(path) & _OURS), None)
    if mine is None:
        yield Unknown(f"no configuration of ours in {folder}; `overlayctl cni install` writes one")
        return
    ahead = files[: files.index(mine)]
    for path in ahead:
        what = "cannot be read and" if not _types(path) else "is another network's and"
        reason = f"{path} {what} sorts before {mine.name}: runtimes attach pods by it"
        yield error(reason, f"mv {quote(str(path))} {quote(f'{path}.disabled')}")
    if not ahead:
        yield Fine(f"{mine.name} comes first in {folder}")


def _types(path: Path) -> frozenset[str]:
    """Return the types of the plugins that a file names; none for what cannot be read."""
    try:
        document = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return frozenset()
    if not isinstance(document, dict):
        return frozenset()
    plugins = document.get("plugins", [document])
    if not isinstance(plugins, list):
        return frozenset()
    return frozenset(
        str(plugin["type"]) for plugin in plugins if isinstance(plugin, dict) and "type" in plugin
    )


CHECK: Final = Check("cni-config", "the order of files where runtimes look for networks", _run)
