"""CNI plugins under measurement: ours in both forms, the reference plugins, and a floor."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import overlay_cni.plugin

FLOOR: Final = "/bin/true"
FLANNEL: Final = "flannel's chain (stand-in)"
_META: Final = Path(__file__).with_name("flannel_meta.c")
_SHIM: Final = Path(__file__).resolve().parents[1] / "cni" / "shim"
# Debian's containernetworking-plugins, and where most others put them.
_REFERENCE: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_VERSION: Final = "1.0.0"
_MTU: Final = 1450  # bytes, as on a VXLAN device over Ethernet
_POD_NETWORK: Final = "10.88.0.0/24"


@dataclass(frozen=True, slots=True)
class Chain:
    """What a runtime executes for one network: the program, its configuration, where others lie."""

    name: str
    words: tuple[str, ...]
    config: bytes
    path: str = ""  # CNI_PATH
    needs_agent: bool = False


def chains(place: Path, socket: Path) -> Iterator[Chain]:
    """Yield the floor, then every plugin that is on this machine.

    ``place`` is a directory for what is built and for host-local's files, with
    the agent's subnet.env; ``socket`` is our agent's. flannel's own plugin is
    stood in for: its place has a program in C, which starts faster than Go does.
    """
    ours = _config("overlay", socket=str(socket))
    yield Chain(FLOOR, (FLOOR,), ours)
    if shutil.which("cc") is not None:
        subprocess.run(["make", "-s", "-C", str(_SHIM), f"BUILD={place}"], check=True)
        yield Chain("overlay in C", (str(place / "overlay"),), ours, needs_agent=True)
    words = (sys.executable, "-ISE", overlay_cni.plugin.__file__)
    yield Chain("overlay in Python", words, ours, needs_agent=True)
    folder = next((each for each in _REFERENCE if _is_complete(each)), None)
    if folder is None:
        return
    for kind in ("bridge", "ptp"):
        ipam = {
            "type": "host-local",
            "dataDir": str(place / kind),
            "ranges": [[{"subnet": _POD_NETWORK}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        more = {"bridge": "cni0", "isGateway": True} if kind == "bridge" else {}
        config = _config(kind, ipam=ipam, mtu=_MTU, **more)
        yield Chain(f"{kind} + host-local", (str(folder / kind),), config, str(folder))
    if shutil.which("cc") is not None:
        meta = place / "flannel_meta"
        subprocess.run(["cc", "-O2", "-static", "-o", meta, _META], check=True)
        words = (str(meta), str(place / "subnet.env"), str(place / "flannel"))
        config = _config("flannel")
        yield Chain(FLANNEL, (*words, str(folder / "bridge")), config, str(folder))


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("bridge", "ptp", "host-local"))


def _config(kind: str, **more: Any) -> bytes:
    return json.dumps({"cniVersion": _VERSION, "name": "bench", "type": kind, **more}).encode()
