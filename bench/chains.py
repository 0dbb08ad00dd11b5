"""CNI plugins under measurement: ours in both forms, the reference plugins, and a floor."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from overlay_cni.install import install_plugin, own_interpreter

FLOOR: Final = "/bin/true"
FLANNEL: Final = "flannel's chain"
STAND_IN: Final = "flannel's chain, a program in C for its plugin"
_HERE: Final = Path(__file__).parent
_SHIM: Final = _HERE.resolve().parent / "cni" / "shim"
_GO_PACKAGES: Final = Path("/usr/share/gocode")  # where Debian's golang-*-dev lie
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
    the agent's subnet.env; ``socket`` is our agent's.
    """
    ours = _config("overlay", socket=str(socket))
    yield Chain(FLOOR, (FLOOR,), ours)
    subprocess.run(["make", "-s", "-C", str(_SHIM), f"BUILD={place}"], check=True)
    yield Chain("overlay in C", (str(place / "overlay"),), ours, needs_agent=True)
    install_plugin(place / "overlay.py", own_interpreter())
    yield Chain("overlay in Python", (str(place / "overlay.py"),), ours, needs_agent=True)
    folder = next((each for each in _REFERENCE if _is_complete(each)), None)
    if folder is not None:
        yield from _reference(place, folder)
        yield from _flannel(place, folder)


def _reference(place: Path, folder: Path) -> Iterator[Chain]:
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


def _flannel(place: Path, folder: Path) -> Iterator[Chain]:
    """Yield flannel's chain, by a plugin of ours that does what flannel's does.

    In Go as flannel's is, where Go and the libraries of CNI are installed, and in C.
    """
    subnet_file, data = str(place / "subnet.env"), place / "flannel"
    if _can_build_go():
        plugin = place / "flannel_meta_go"
        _build_go(_HERE / "flannel_meta.go", plugin)
        # As in flannel's own manifest; the delegate's name and files are this chain's alone.
        delegate = {"bridge": "cni-flannel-go", "hairpinMode": True, "isDefaultGateway": True}
        config = _config(
            "flannel",
            subnetFile=subnet_file,
            dataDir=str(data / "go"),
            delegate=delegate,
            ipam={"dataDir": str(data / "addresses")},
        )
        yield Chain(FLANNEL, (str(plugin),), config, str(folder))
    plugin = place / "flannel_meta"
    subprocess.run(["cc", "-O2", "-static", "-o", plugin, _HERE / "flannel_meta.c"], check=True)
    words = (str(plugin), subnet_file, str(data), str(folder / "bridge"))
    yield Chain(STAND_IN, words, _config("flannel"), str(folder))


def _can_build_go() -> bool:
    libraries = _GO_PACKAGES / "src" / "github.com" / "containernetworking" / "cni"
    return shutil.which("go") is not None and libraries.is_dir()


def _build_go(source: Path, program: Path) -> None:
    """Build as flannel builds its plugin: static, without symbols. No network is asked."""
    settings = {"GO111MODULE": "off", "GOPATH": str(_GO_PACKAGES), "CGO_ENABLED": "0"}
    subprocess.run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(program), str(source)],
        env={**os.environ, "GOFLAGS": "", **settings},
        check=True,
    )


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("bridge", "ptp", "host-local"))


def _config(kind: str, **more: Any) -> bytes:
    return json.dumps({"cniVersion": _VERSION, "name": "bench", "type": kind, **more}).encode()
