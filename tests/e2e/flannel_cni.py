"""What flannel's CNI plugin does, for machines that have no such binary: a plugin of its own.

It reads ``subnet.env`` by itself, makes the delegate's configuration and
executes that plugin, found by CNI_PATH, in its own place. Source:
flannel-io/cni-plugin, flannel.go and flannel_linux.go (v1.1 to v1.7). It is
run as a program and imports nothing of ours, so that our subnet file is read
by somebody else's rules.
"""

import json
import os
import subprocess
import sys
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

NEEDED = ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ")


def read_environment(text: str) -> dict[str, Any]:
    """Return the networks, subnets, MTU and masquerading that a subnet file names."""
    values = dict(line.split("=", 1) for line in text.splitlines())
    missing = [name for name in NEEDED if name not in values]
    if missing:
        msg = f"subnet file is missing {', '.join(missing)}"
        raise ValueError(msg)
    subnets, networks = [], []
    for family in ("", "IPV6_"):
        if values.get(f"FLANNEL_{family}SUBNET"):
            subnets.append(ip_interface(values[f"FLANNEL_{family}SUBNET"]).network)
        listed = values.get(f"FLANNEL_{family}NETWORK", "")
        networks += [ip_network(item) for item in listed.split(",") if item]
    return {
        "subnets": subnets,
        "networks": networks,
        "mtu": int(values["FLANNEL_MTU"]),
        "ipmasq": values["FLANNEL_IPMASQ"] == "true",
    }


def delegate_config(config: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the plugin that does the work, a bridge unless told otherwise."""
    delegate = {**config.get("delegate", {})}
    delegate["name"] = config["name"]
    delegate.setdefault("type", "bridge")
    # Where the agent does not masquerade, the plugin is to do it.
    delegate.setdefault("ipMasq", not environment["ipmasq"])
    delegate.setdefault("mtu", environment["mtu"])
    if delegate["type"] == "bridge":
        delegate.setdefault("isGateway", True)
    if config.get("cniVersion"):
        delegate["cniVersion"] = config["cniVersion"]
    ipam = {"type": "host-local", **config.get("ipam", {})}
    ipam["ranges"] = [[{"subnet": str(subnet)}] for subnet in environment["subnets"]]
    routes = list(ipam.get("routes", []))
    ipam["routes"] = routes + [{"dst": str(network)} for network in environment["networks"]]
    delegate["ipam"] = ipam
    return delegate


def main() -> int:
    """Do as CNI_COMMAND says; the delegate's configuration is kept from ADD to DEL."""
    config = json.load(sys.stdin)
    kept = Path(config["dataDir"], os.environ["CNI_CONTAINERID"])
    if os.environ["CNI_COMMAND"] == "ADD":
        environment = read_environment(Path(config["subnetFile"]).read_text())
        delegate = delegate_config(config, environment)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(delegate))
    elif not kept.exists():
        return 0  # DEL twice
    delegate = json.loads(kept.read_text())
    if "prevResult" in config:
        delegate["prevResult"] = config["prevResult"]
    paths = [Path(folder, delegate["type"]) for folder in os.environ["CNI_PATH"].split(":")]
    program = next(path for path in paths if os.access(path, os.X_OK))
    done = subprocess.run([program], input=json.dumps(delegate).encode(), check=False)
    if os.environ["CNI_COMMAND"] == "DEL" and done.returncode == 0:
        kept.unlink()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
