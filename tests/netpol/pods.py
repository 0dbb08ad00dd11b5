"""Nine pods for a lab that has none: attached by the real plugin, with the names of the tables."""

import json
import subprocess
from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Any, Final

from overlay.lab import netns
from overlay.lab.fabric import Lab
from overlay.lab.pods import plugin_command
from overlay.model.address import IPAddress
from tests.netpol.casebook import NODE_OF
from tests.netpol.statements import PODS

_LIMIT_S: Final = 60.0


def namespace_of(lab: Lab, pod: str) -> str:
    """Return the kernel's namespace of a pod such as ``x/a``."""
    return f"{lab.topology.underlay.removesuffix('underlay')}{pod.replace('/', '-')}"


def attach(lab: Lab) -> dict[str, frozenset[IPAddress]]:
    """Make the pods' namespaces and attach each on its node; return their addresses."""
    netns.add(namespace_of(lab, pod) for pod in PODS)
    return {pod: frozenset(_add(lab, pod)) for pod in PODS}


def remove(lab: Lab) -> None:
    """Remove the pods' namespaces; repeating it is safe."""
    netns.delete([namespace_of(lab, pod) for pod in PODS])


def _add(lab: Lab, pod: str) -> Iterable[IPAddress]:
    namespace, _, name = pod.partition("/")
    node = NODE_OF[name]
    config = {
        "cniVersion": "1.0.0",
        "name": "overlay",
        "type": "overlay",
        "socket": str(lab.dir.node(node) / "cni.sock"),
    }
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": pod.replace("/", "-"),
        "CNI_NETNS": str(netns.NETNS_DIR / namespace_of(lab, pod)),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}",
    }

    def executed() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            plugin_command(),
            input=json.dumps(config),
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
        )

    done = netns.inside(lab.topology.namespace_of(node), executed)
    assert done.returncode == 0, done.stdout
    result: Any = json.loads(done.stdout)
    return [ip_interface(each["address"]).ip for each in result["ips"]]
