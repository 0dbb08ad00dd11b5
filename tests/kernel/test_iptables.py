"""FORWARD chains of iptables that drop, nft and legacy, with real packets."""

import shutil
import socket
import subprocess
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest

from overlay.kernel import iptables
from overlay.model.address import Family
from overlay.policy.iptables_listing import iptables_listing
from overlay.policy.packet import Packet
from overlay.policy.verdict import verdicts
from overlay.trace.rules import filter_steps
from tests.kernel.netns import MakeNetns, Netns, PodLine, eventually
from tests.unit.ways import party

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

NETWORKS = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:1::/56"))
TOOLS = {4: "iptables", 6: "ip6tables"}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture
def line(make_netns: MakeNetns) -> PodLine:
    return PodLine(make_netns)


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest, netns: Netns) -> str:
    name = str(request.param)
    tool = f"iptables-{name}"
    if shutil.which(tool) is None or _fails(netns, tool, "-S"):
        pytest.skip(f"{tool} is not here, or the kernel knows nothing of it")
    return name


def _fails(netns: Netns, *argv: str) -> bool:
    command = ["nsenter", f"--net={netns.path}", *argv]
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def ensure(netns: Netns) -> tuple[str, ...]:
    return netns.call(lambda: iptables.ensure(NETWORKS))


def passes(line: PodLine, version: int) -> bool:
    """Return whether a datagram of the pod reaches the outside: three are sent."""
    with (
        line.outside.socket(AF[version], socket.SOCK_DGRAM) as server,
        line.pod.socket(AF[version], socket.SOCK_DGRAM) as sender,
    ):
        server.bind((PodLine.OUTSIDE[version], 5000))
        server.settimeout(0.1)
        for _ in range(3):
            sender.sendto(b"x", (PodLine.OUTSIDE[version], 5000))
            try:
                return server.recv(10) == b"x"
            except TimeoutError:
                continue
    return False


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("how", ["policy", "rule"])
def test_pods_pass_a_chain_that_drops(line: PodLine, variant: str, version: int, how: str) -> None:
    tool = f"{TOOLS[version]}-{variant}"
    node = line.node
    drop = ["-P", "FORWARD", "DROP"] if how == "policy" else ["-A", "FORWARD", "-j", "DROP"]
    node.run(tool, *drop)
    assert not passes(line, version)
    before = node.run(tool, "-S")
    assert ensure(node) == ()
    eventually(partial(passes, line, version), what="a datagram through FORWARD")
    after = node.run(tool, "-S")
    assert ensure(node) == ()
    assert node.run(tool, "-S") == after
    assert node.call(iptables.remove) == ()
    assert node.run(tool, "-S") == before
    assert not passes(line, version)
    ensure(node)
    node.run(tool, *(["-P", "FORWARD", "ACCEPT"] if how == "policy" else ["-D", *drop[1:]]))
    assert ensure(node) == ()
    assert "OVERLAY" not in node.run(tool, "-S")
    eventually(partial(passes, line, version), what="a datagram through FORWARD")


def test_chain_reads_like_iptables(variant: str, netns: Netns) -> None:
    tool = f"iptables-{variant}"
    netns.run(tool, "-P", "FORWARD", "DROP")
    ensure(netns)
    assert netns.run(tool, "-S") == (
        "-P INPUT ACCEPT\n"
        "-P FORWARD DROP\n"
        "-P OUTPUT ACCEPT\n"
        "-N OVERLAY-FORWARD\n"
        "-A FORWARD -m comment --comment overlay-fabric -j OVERLAY-FORWARD\n"
        "-A OVERLAY-FORWARD -s 10.244.0.0/16 -m comment --comment overlay-fabric -j ACCEPT\n"
        "-A OVERLAY-FORWARD -d 10.244.0.0/16 -m comment --comment overlay-fabric -j ACCEPT\n"
        "-A OVERLAY-FORWARD -i opod-bridge -o opod-bridge -m comment "
        "--comment overlay-fabric -j ACCEPT\n"
    )


def test_jump_behind_a_drop_moves_up_and_another_in_front_is_let_be(
    variant: str, netns: Netns
) -> None:
    tool = f"iptables-{variant}"
    netns.run(tool, "-P", "FORWARD", "DROP")
    ensure(netns)
    netns.run(tool, "-N", "OTHER")
    netns.run(tool, "-I", "FORWARD", "-j", "OTHER")
    before = netns.run(tool, "-S")
    ensure(netns)
    assert netns.run(tool, "-S") == before
    netns.run(tool, "-I", "FORWARD", "-j", "REJECT")
    ensure(netns)
    forward = [
        text for text in netns.run(tool, "-S", "FORWARD").splitlines() if text.startswith("-A")
    ]
    assert [text.split("-j ")[1].split()[0] for text in forward] == [
        "OVERLAY-FORWARD",
        "REJECT",
        "OTHER",
    ]


def test_tampered_chain_is_made_right(variant: str, netns: Netns) -> None:
    tool = f"iptables-{variant}"
    netns.run(tool, "-P", "FORWARD", "DROP")
    ensure(netns)
    right = netns.run(tool, "-S")
    for change in (
        ["-F", "OVERLAY-FORWARD"],
        ["-A", "OVERLAY-FORWARD", "-j", "ACCEPT"],
        ["-F", "FORWARD"],
        ["-A", "FORWARD", "-m", "comment", "--comment", "overlay-fabric", "-j", "OVERLAY-FORWARD"],
    ):
        netns.run(tool, *change)
        assert ensure(netns) == ()
        assert netns.run(tool, "-S") == right


def test_nothing_is_made_where_there_is_no_iptables_table(netns: Netns) -> None:
    assert ensure(netns) == ()
    assert netns.call(iptables.remove) == ()
    assert netns.nft("list", "tables") == ""
    for family in ("ip", "ip6"):
        path = Path(f"/proc/thread-self/net/{family}_tables_names")
        if path.exists():
            assert netns.call(path.read_text) == ""


def test_chain_that_accepts_is_let_alone(variant: str, netns: Netns) -> None:
    tool = f"iptables-{variant}"
    netns.run(tool, "-A", "FORWARD", "-j", "ACCEPT")
    before = netns.run(tool, "-S")
    assert ensure(netns) == ()
    assert netns.run(tool, "-S") == before


def test_dropping_chain_without_iptables_is_a_problem(
    netns: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netns.run("iptables-nft", "-P", "FORWARD", "DROP")
    nft = shutil.which("nft")
    assert nft is not None
    (tmp_path / "nft").symlink_to(nft)
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = ensure(netns)
    assert problem.startswith("iptables (nft): a FORWARD chain may drop what pods send")


def test_dropping_chain_of_another_firewall_is_a_problem(netns: Netns) -> None:
    netns.nft(
        "add table inet fw; add chain inet fw f {type filter hook forward priority 0; policy drop;}"
    )
    assert ensure(netns) == (
        "nftables: chain inet fw f drops by policy; accept the pod networks in it",
    )


def test_table_that_iptables_cannot_read_is_a_problem(netns: Netns) -> None:
    netns.nft(
        "add table ip filter; add chain ip filter FORWARD "
        "{type filter hook forward priority 0; policy drop;}; "
        "add rule ip filter FORWARD fib saddr . iif oif missing drop"
    )
    (problem,) = ensure(netns)
    assert problem.startswith("iptables (nft): ")
    assert "incompatible" in problem


def test_legacy_rules_are_judged_with_those_of_nft(netns: Netns) -> None:
    assert netns.call(lambda: iptables.legacy_listing(Family.IPV4)) is None, "no table is made"
    netns.run("iptables-legacy", "-A", "FORWARD", "-d", "198.51.100.9", "-j", "DROP")
    found = netns.call(lambda: iptables.legacy_listing(Family.IPV4))
    assert found is not None
    program, chains = found
    listing = iptables_listing(Family.IPV4, chains, program)
    source = ip_address("192.0.2.1")
    (dropped,) = verdicts(listing, "forward", Packet(source, ip_address("198.51.100.9")))
    (passed,) = verdicts(listing, "forward", Packet(source, ip_address("198.51.100.8")))
    assert (dropped.stops, passed.stops) == (True, False)
    assert dropped.chain.name == "iptables-legacy FORWARD"
    step = next(filter_steps("policy", [dropped], Packet(source, source), party(source, None)))
    assert step.mend == "iptables-legacy -D FORWARD -d 198.51.100.9/32 -j DROP"
    netns.run(*step.mend.split())
    again = netns.call(lambda: iptables.legacy_listing(Family.IPV4))
    assert again is not None
    assert not any(line.startswith("-A") for line in again[1]["FORWARD"])
