"""The whole chain of reference plugins, run by the runtimes themselves."""

import json
from typing import Any, Final

import pytest

from overlay.model.address import FAMILIES
from tests.runtime.image import PORT
from tests.runtime.runtimes import Containerd, Podman, Runtime
from tests.runtime.site import Site, addresses, ask, nothing_is_left

pytestmark = pytest.mark.runtime

RATE: Final = 16_000_000  # bits a second
SETTING: Final = "/proc/sys/net/ipv4/conf/eth0/accept_local"


def conflist(name: str) -> dict[str, Any]:
    """Return a chain whose plugins need nothing of the runtime but published ports."""
    limits = {"ingressRate": RATE, "ingressBurst": RATE, "egressRate": RATE, "egressBurst": RATE}
    plugins = [
        {"type": "overlay"},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        {"type": "bandwidth", **limits},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.accept_local": "1"}},
        {"type": "firewall", "backend": "iptables"},
    ]
    return {"cniVersion": "0.4.0", "name": name, "plugins": plugins}


def every_plugin_worked(site: Site, runtime: Runtime) -> None:
    """Assert inside and outside that every plugin of the container's chain did its work."""
    (own, *_) = addresses(runtime, "chained")
    assert "tbf" in (rules := site.rules("n1"))
    assert f"ip saddr {own}" in rules, "the firewall lets its packets pass"
    told = runtime.execute("chained", "sh", "-c", f"read value <{SETTING}; echo $value")
    assert told.strip() == "1"


def test_podman_runs_the_whole_chain(site: Site) -> None:
    site.install("shim")
    podman, other = (Podman(site.machines[n], site.image, site.cgroup(n)) for n in ("n1", "n2"))
    (podman.networks / "chain.conflist").write_text(json.dumps(conflist("chain")))
    publish = ("--publish", f"8081:{PORT}")
    podman.start("first", *publish, network="chain")
    podman.stop("first")  # what the plugins make once and leave for ever is there now
    before = site.rules("n1")
    other.start("client")
    podman.start("chained", *publish, network="chain")
    every_plugin_worked(site, podman)
    for family in FAMILIES:
        target = site.lab.topology.nodes[0].address(family)
        assert ask(other, "client", target, 8081) in addresses(other, "client")
        ask(podman, "chained", target, 8081)
    podman.stop("chained")
    other.stop("client")
    nothing_is_left(site, "n1")
    assert site.rules("n1") == before


def test_ctr_runs_the_whole_chain(site: Site) -> None:
    site.install("python")
    machine = site.machines["n1"]
    (machine.networks / "10-chain.conflist").write_text(json.dumps(conflist("chain-ctr")))
    containerd = Containerd(machine, site.image, site.cgroup("n1"))
    try:
        containerd.start("first")
        containerd.stop("first")
        before = site.rules("n1")
        containerd.start("chained")
        every_plugin_worked(site, containerd)
        containerd.stop("chained")
        nothing_is_left(site, "n1")
        assert site.rules("n1") == before
    finally:
        containerd.close()
