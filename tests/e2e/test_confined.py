"""The agent as its DaemonSet runs it: NET_ADMIN and NET_RAW alone, /proc/sys and root read-only."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.confined import capability_mask, confined
from tests.e2e.test_cni import CONFIG, Node, addresses, host_links, running_node, says
from tests.kernel.netns import Netns, eventually
from tests.unit.cni_plugins import build

pytestmark = pytest.mark.e2e

IPV4: Final = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}})


@pytest.fixture(scope="module", params=[CONFIG, IPV4], ids=["dual-stack", "IPv4"])
def node(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Node]:
    place = tmp_path_factory.mktemp("confined")
    with running_node(place, under=confined(place), config=request.param) as here:
        yield here


@pytest.fixture(params=["python", "shim"])
def plugin(request: pytest.FixtureRequest, node: Node, tmp_path: Path) -> str:
    """Let the node's runtime execute this form of the plugin; return which one."""
    node.plugin = [str(build(request.param, tmp_path).path)]
    return str(request.param)


def stubborn_pod(node: Node) -> Netns:
    """Return a pod whose runtime switched IPv6 off for all that comes."""
    pod = node.pod()
    for which in ("all", "default"):
        pod.sysctl(f"net/ipv6/conf/{which}/disable_ipv6", 1)
    return pod


def test_agent_has_the_rights_of_its_manifest_and_no_others(node: Node) -> None:
    status = Path(f"/proc/{node.agent.process.pid}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {int(found[name], 16) for name in ("CapBnd", "CapPrm", "CapEff")} == {capability_mask()}
    assert found["NoNewPrivs"] == "1"
    mounts = Path(f"/proc/{node.agent.process.pid}/mountinfo").read_text().splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    inside = {path: flags[0] for path, flags in options.items()}
    assert inside["/proc/sys"] == inside["/"] == "ro"


@pytest.mark.parametrize("mode", ["ptp", "bridge"])
@pytest.mark.usefixtures("plugin")
def test_pods_are_attached_checked_and_detached(node: Node, mode: str) -> None:
    one, two = stubborn_pod(node), node.pod()
    first, second = (node.add(name, pod, mode=mode) for name, pod in (("one", one), ("two", two)))
    for mine, theirs in zip(addresses(first), addresses(second), strict=True):
        assert says(one, two, theirs) == mine
        assert says(two, node.world.node, _node_address(theirs)) == theirs
    given: dict[str, Any] = {"mode": mode, "prevResult": first}
    assert node.cni("CHECK", "one", str(one.path), **given) == (0, None)
    assert node.cni("STATUS") == (0, None)
    _assert_sysctls(one, first, mode)

    one.ip("addr", "flush", "dev", "eth0", "scope", "global")
    status, error = node.cni("CHECK", "one", str(one.path), **given)
    assert status == 1
    assert f"address {addresses(first)[0]} is missing on eth0" in error["msg"]

    assert node.cni("DEL", "one", str(one.path), mode=mode) == (0, None)
    assert len(host_links(node)) == 1
    assert node.cni("GC", config={"cni.dev/valid-attachments": []}) == (0, None)
    assert host_links(node) == []


def _node_address(pods: str) -> str:
    return "2001:db8::1" if ":" in pods else "192.0.2.1"


def _assert_sysctls(pod: Netns, result: dict[str, Any], mode: str) -> None:
    prefix = "net/ipv6/conf/eth0"
    if any(":" in address for address in addresses(result)):
        assert pod.sysctl(f"{prefix}/disable_ipv6") == "0"
    if mode == "bridge":
        assert (pod.sysctl(f"{prefix}/accept_ra"), pod.sysctl(f"{prefix}/accept_dad")) == ("0", "0")


def test_an_older_plugin_is_told_of_by_name(node: Node) -> None:
    """It hands over the namespace alone, as one does that may not enter it itself."""
    form = ["setpriv", "--bounding-set=-sys_admin", *node.plugin]
    kept, node.plugin = node.plugin, form
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, node, "plugin", kept)
        pod = node.pod()
        status, error = node.cni("ADD", "old", str(pod.path))
    assert status == 1
    assert "on the host, root has it); this agent needs a plugin that hands over" in error["msg"]
    assert host_links(node) == []


def test_what_somebody_takes_away_is_put_right(node: Node) -> None:
    here = node.world.node
    table = here.nft("list", "table", "inet", "overlay")
    here.nft("delete", "table", "inet", "overlay")
    here.sysctl("net/ipv4/ip_forward", 0)
    eventually(
        lambda: (
            here.sysctl("net/ipv4/ip_forward") == "1"
            and "table inet overlay" in here.nft("list", "tables")
        ),
        timeout_s=20,
        what=f"repair of {table[:40]!r}, log {node.agent.log}",
    )
