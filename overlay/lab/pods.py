"""Pods, attached as a runtime does it: by executing the CNI plugin on their node.

What the plugin answers is kept beside the node's state, for whoever asks for
a pod's addresses later.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final

from overlay.lab import netns
from overlay.lab.errors import LabError
from overlay.lab.state import StateDir
from overlay.lab.topology import NODE_DEVICE, PodPlace, Topology
from overlay.model.address import Family, IPAddress, IPInterface, family_of

_SUBNET_KEY: Final = {Family.IPV4: "FLANNEL_SUBNET", Family.IPV6: "FLANNEL_IPV6_SUBNET"}
_CNI_VERSION: Final = "1.1.0"
_NETWORK: Final = "lab"
_TIMEOUT_S: Final = 60.0  # a runtime's own


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """What the lab needs of an agent's subnet file: the node's subnets and the pods' MTU."""

    subnets: Mapping[Family, IPInterface]
    mtu: int  # bytes


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with its addresses, and the name of the node's end of its veth pair."""

    name: str
    namespace: str
    node: str
    addresses: Mapping[Family, IPAddress]
    host_link: str


def parse_subnet_file(text: str) -> SubnetFile:
    """Return what flannel's variables say (``pkg/subnet/subnet.go``, WriteSubnetFile).

    Raises LabError when the file holds no subnet or no MTU.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        subnets = {
            family: ip_interface(values[key])
            for family, key in _SUBNET_KEY.items()
            if values.get(key)
        }
        mtu = int(values["FLANNEL_MTU"])
    except (KeyError, ValueError) as exc:
        msg = f"subnet file: {exc!r} in {text!r}"
        raise LabError(msg) from exc
    if not subnets:
        msg = f"subnet file: neither {' nor '.join(_SUBNET_KEY.values())} in {text!r}"
        raise LabError(msg)
    return SubnetFile(subnets, mtu)


def read_subnet_file(path: Path) -> SubnetFile:
    """Return what an agent's subnet file says. Raises LabError."""
    try:
        return parse_subnet_file(path.read_text(errors="replace"))
    except OSError as exc:
        msg = f"subnet file {path}: {exc.strerror}"
        raise LabError(msg) from exc


def attach(topology: Topology, state: StateDir) -> tuple[Pod, ...]:
    """Make the pods' namespaces and attach each to its node's fabric; return the pods.

    One after the other on a node, the nodes side by side. Raises LabError
    with what the plugin says.
    """
    netns.add(place.namespace for place in topology.pods)
    places: dict[str, list[PodPlace]] = {}
    by_name = {node.name: node.namespace for node in topology.nodes}
    for place in topology.pods:
        places.setdefault(by_name[place.node], []).append(place)

    def attach_all(node: str) -> None:
        for place in places[node]:
            result = _add(place, state)
            _result_file(place, state).write_text(json.dumps(result))

    netns.inside_each(places, attach_all)
    return read_pods(topology, state)


def read_pods(topology: Topology, state: StateDir) -> tuple[Pod, ...]:
    """Return the pods with the addresses that they were given. Raises LabError."""
    return tuple(_read(place, state) for place in topology.pods)


def plugin_command() -> list[str]:
    """Return the words that execute the plugin: the one `make` left, else the source."""
    installed = Path(sys.executable).parent / "overlay"
    if os.access(installed, os.X_OK):
        return [str(installed)]
    spec = find_spec("overlay_cni.plugin")
    if spec is None or spec.origin is None:
        msg = "the CNI plugin is not installed beside this Python; run `make setup`"
        raise LabError(msg)
    return [sys.executable, "-ISE", spec.origin]


def _add(place: PodPlace, state: StateDir) -> Any:
    config = {
        "cniVersion": _CNI_VERSION,
        "name": _NETWORK,
        "type": "overlay",
        "socket": str(state.node(place.node) / "cni.sock"),
    }
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": place.name,
        "CNI_NETNS": f"/run/netns/{place.namespace}",
        "CNI_IFNAME": NODE_DEVICE,
        "CNI_PATH": "/opt/cni/bin",
    }
    try:
        done = subprocess.run(
            plugin_command(),
            input=json.dumps(config),
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        result = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        msg = f"pod {place.name}: the CNI plugin gave no answer: {exc}"
        raise LabError(msg) from exc
    if done.returncode != 0:
        msg = f"pod {place.name}: {result.get('msg')} (CNI error {result.get('code')})"
        raise LabError(msg)
    return result


def _read(place: PodPlace, state: StateDir) -> Pod:
    try:
        result = json.loads(_result_file(place, state).read_text())
        found = [ip_interface(ip["address"]).ip for ip in result["ips"]]
        host_link = str(result["interfaces"][0]["name"])
    except (OSError, ValueError, LookupError, TypeError) as exc:
        msg = f"pod {place.name} was not attached: {exc}"
        raise LabError(msg) from exc
    addresses = {family_of(address): address for address in found}
    return Pod(place.name, place.namespace, place.node, addresses, host_link)


def _result_file(place: PodPlace, state: StateDir) -> Path:
    return state.node(place.node) / f"{place.name}.cni.json"
