"""Checks of doctor that look at this host: silent on a sound node, and not on a spoiled one.

Each fault is made in the node's own namespace, and where the remedy is a
command that can be run there, it is run and the check is silent again.
"""

import http.server
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.cli.doctor.checks.kernel import judge
from overlay.cli.doctor.runner import run_one
from overlay.kernel.host.features import missing
from tests.kernel.doctors import (
    BY_NAME,
    Node,
    examine,
    facts_of,
    lease,
    remedies,
    said,
    shell,
)
from tests.kernel.netns import MakeNetns, Netns

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

OVERLAYCTL = Path(sys.executable).parent / "overlayctl"


@pytest.fixture
def node(make_netns: MakeNetns, tmp_path: Path) -> Node:
    return Node(make_netns, tmp_path, {"10.244.2.0-24": lease(2)})


# check, fault, what is said, whether the remedy can be carried out in a namespace
FAULTS = [
    ("forwarding", "sysctl -qw net.ipv4.ip_forward=0", "net/ipv4/ip_forward = 0", True),
    (
        "forwarding",
        "sysctl -qw net/ipv4/conf/overlay.1/forwarding=0",
        "net/ipv4/conf/overlay.1/forwarding = 0",
        True,
    ),
    (
        "rp-filter",
        "sysctl -qw net/ipv4/conf/overlay.1/rp_filter=1; ip rule del priority 20310",
        "the rule that leads answers to nodes back through it is gone",
        False,
    ),
    (
        "rp-filter",
        ("ip link add side0 type veth peer name side1; "
        "ip link set side0 up; ip link set side1 up; ip route add 192.0.2.2/32 dev side0; "
        "sysctl -qw net/ipv4/conf/eth0/rp_filter=1; "
        "sysctl -qw net/ipv4/conf/all/rp_filter=0"),
        "answers to 192.0.2.2 leave by another link",
        True,
    ),
    (
        "br-netfilter",
        ("ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; "
        "sysctl -qw net/bridge/bridge-nf-call-iptables=0"),
        "pods are on cni0 and net/bridge/bridge-nf-call-iptables = 0",
        True,
    ),
    ("forward-policy", "iptables -P FORWARD DROP", "FORWARD drops what pods send to", True),
    ("forward-policy", "iptables -A FORWARD -j REJECT", "-A FORWARD -j REJECT", True),
    (
        "forward-policy",
        ("nft 'add table inet fw; "
        "add chain inet fw f { type filter hook forward priority 0; policy drop; }'"),
        "nft chain inet fw f drops what pods send to pods: the policy",
        True,
    ),
    ("port-open", "iptables -P INPUT DROP", "iptables-nft INPUT drops", True),
    (
        "port-open",
        ("iptables -N BLOCK; iptables -A INPUT -i eth0 -j BLOCK; "
        "iptables -A BLOCK -p udp -m multiport --dports 4789,8472 -j DROP"),
        "-A BLOCK -p udp -m multiport --dports 4789,8472 -j DROP",
        True,
    ),
    (
        "port-open",
        ("nft 'add table inet fw; "
        "add chain inet fw i { type filter hook input priority 0; policy drop; }; "
        "add rule inet fw i ct state established,related accept; "
        "add rule inet fw i tcp dport 22 accept'"),
        "nft chain inet fw i drops what peers send to UDP 8472: the policy",
        True,
    ),
    (
        "port-open",
        ("nft 'add table ip fw; add chain ip fw i { type filter hook input priority 0; }; "
        "add rule ip fw i ip saddr 192.0.2.0/24 udp dport { 4000-9000 } reject'"),
        "reject",
        True,
    ),
    ("ruleset", "nft flush ruleset", "table inet overlay is gone", False),
    (
        "flannel",
        "ip link add flannel.1 type vxlan id 2 dstport 8472 local 192.0.2.1 nolearning",
        "flannel.1 is left of flannel",
        True,
    ),
    (
        "flannel",
        "ip link add cni0 type bridge; ip addr add 10.244.9.1/24 dev cni0",
        "cni0 has an address outside this node's subnet",
        True,
    ),
    ("flannel", "nft add table ip flannel-ipv4; nft add chain ip flannel-ipv4 p", "masq", True),
    (
        "flannel",
        "iptables -t nat -N FLANNEL-POSTRTG; iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG",
        "chain ip nat FLANNEL-POSTRTG is left of flannel",
        True,
    ),
    ("device", "ip link set overlay.1 down", "overlay.1 is down", True),
    ("device", "ip link set eth0 down", "eth0, which overlay.1 sends through, is down", True),
    ("device", "ip link del overlay.1", "the tunnel's device is gone", False),
    ("mtu", "ip link set eth0 mtu 1400", "1500 with its headers, but eth0 carries 1400", True),
    (
        "mtu",
        "ip link add opod0 type veth peer name side0",
        "MTU of opod0 is larger than overlay.1's 1450",
        True,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault", "words", "mends"), FAULTS)
def test_fault_is_found_and_mended(
    node: Node, name: str, fault: str, words: str, mends: bool
) -> None:
    before = node.check(name)
    assert before.status == "fine", before
    node.run(fault)
    spoiled = node.check(name)
    assert spoiled.status == "finding"
    assert words in said(spoiled)
    if mends:
        for command in remedies(spoiled):
            node.here.run("sh", "-c", command, check=False)
        assert node.check(name).status == "fine", (remedies(spoiled), node.check(name))


@pytest.mark.parametrize(
    "harmless",
    [
        ("port-open", "iptables -P INPUT DROP; iptables -A INPUT -s 192.0.2.0/24 -j ACCEPT"),
        ("port-open", "iptables -A INPUT -p udp --dport 53 -j DROP"),
        ("port-open", "iptables -A INPUT -i lo -j DROP; iptables -A INPUT -p tcp -j REJECT"),
        ("flannel", "ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0"),
        ("rp-filter", "sysctl -qw net/ipv4/conf/all/rp_filter=1"),
        ("br-netfilter", ("ip link add br0 type bridge; ip addr add 172.17.0.1/16 dev br0; "
         "sysctl -qw net/bridge/bridge-nf-call-iptables=0")),
        ("forward-policy", ("iptables -P FORWARD DROP; iptables -N OVERLAY-FORWARD; "
         "iptables -A OVERLAY-FORWARD -s 10.244.0.0/16 -j ACCEPT; "
         "iptables -A OVERLAY-FORWARD -d 10.244.0.0/16 -j ACCEPT; "
         "iptables -I FORWARD -m comment --comment overlay-fabric -j OVERLAY-FORWARD")),
        ("port-open", ("nft 'add table inet fw; "
         "add chain inet fw i { type filter hook input priority 0; policy drop; }; "
         "add rule inet fw i iifname \"eth*\" udp dport 8472 accept'")),
    ],
)  # fmt: skip
def test_what_does_no_harm_is_no_finding(node: Node, harmless: tuple[str, str]) -> None:
    name, command = harmless
    node.run(command)
    assert node.check(name).status == "fine", node.check(name)


@pytest.mark.parametrize(
    "rule",
    [
        "iptables -A INPUT -p udp -m limit --limit 1/s -j DROP",
        (
            "nft 'add table ip fw; add set ip fw s { type ipv4_addr; }; "
            "add chain ip fw i { type filter hook input priority 0; }; "
            "add rule ip fw i ip saddr @s drop'"
        ),
    ],
)
def test_rule_that_cannot_be_judged_is_said_so(node: Node, rule: str) -> None:
    node.run(rule)
    report = node.check("port-open")
    assert report.status == "unknown"
    assert "may drop" in str(report.verdicts)


def test_full_table_of_connections(node: Node) -> None:
    most = int(node.here.sysctl("net/netfilter/nf_conntrack_max"))
    if most > 300_000:
        pytest.skip(f"the machine's table has room for {most} connections: too many to make")
    assert node.check("conntrack").status == "fine"
    # What is tracked has to live until the table is full; a rule that asks for the state tracks.
    node.here.sysctl("net/netfilter/nf_conntrack_udp_timeout", 600)
    node.run(
        "nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; "
        "add rule inet t o ct state new accept'"
    )

    def fill(first: float, share: float) -> None:
        import socket

        for address in range(1, 9):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((f"127.0.1.{address}", 0))
                for port in range(1024 + int(most * first) // 8, 1024 + int(most * share) // 8):
                    sender.sendto(b"", ("127.0.0.2", port))

    node.here.call(lambda: fill(0, 0.8))
    report = node.check("conntrack")
    assert "when the table is full, new ones are dropped" in said(report)
    assert report.findings[0].severity == "warning"
    node.here.call(lambda: fill(0.8, 0.96))
    report = node.check("conntrack")
    assert "connections: new ones are dropped" in said(report)
    assert report.findings[0].severity == "error"


def test_port_that_a_program_has_taken(make_netns: MakeNetns) -> None:
    import socket

    netns = make_netns()
    assert examine(netns, "port-free").status == "fine"
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind(("0.0.0.0", 8472))
        report = examine(netns, "port-free")
        assert "UDP 8472 is taken by " in said(report)
        assert "(pid " in said(report)
    assert examine(netns, "port-free").status == "fine"


def test_port_of_the_own_device_is_no_finding(node: Node) -> None:
    assert node.check("port-free").status == "fine"


def test_old_kernel_that_offloads_checksums(node: Node) -> None:
    """``setarch --uname-2.6`` gives programs a kernel release of before the repair."""
    command = f"setarch --uname-2.6 {OVERLAYCTL} doctor --local --only checksum-offload"
    assert node.check("checksum-offload").status == "fine"
    spoiled = node.here.call(lambda: shell(command))
    assert spoiled.returncode == 1, spoiled
    assert "kernel 2.6." in spoiled.stdout
    assert "ethtool -K overlay.1 tx-checksum-ip-generic off" in spoiled.stdout
    if shutil.which("ethtool") is not None:
        node.run("ethtool -K overlay.1 tx-checksum-ip-generic off")
        mended = node.here.call(lambda: shell(command))
        assert mended.returncode == 0, mended


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("sysctl -qw user.max_inotify_instances=0", "none of "),
        ("sysctl -qw user.max_inotify_instances=5", "5 of "),
    ],
)
def test_inotify_instances_that_are_used_up(before: str, words: str) -> None:
    command = f"{OVERLAYCTL} doctor --local --only inotify"
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", f"{before} && {command}"]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done
    assert words in done.stdout
    assert shell(command).returncode == 0


# Watches files, then runs what the other words say.
WATCHER = """\
import ctypes, pathlib, subprocess, sys
libc, place = ctypes.CDLL(None), pathlib.Path(sys.argv[1])
watcher = libc.inotify_init1(0)
for number in range(95):
    file = place / str(number)
    file.touch()
    assert libc.inotify_add_watch(watcher, str(file).encode(), 2) > 0
sys.exit(subprocess.run(sys.argv[2:]).returncode)
"""


def test_inotify_watches_that_are_used_up(tmp_path: Path) -> None:
    command = f"{OVERLAYCTL} doctor --local --only inotify"
    # A user namespace has a limit of its own (user_namespaces(7)); the host's stays.
    limit = "sysctl -qw user.max_inotify_watches=100"
    watching = f"{sys.executable} -c '{WATCHER}' {tmp_path} {command}"
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", f"{limit} && {watching}"]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)
    assert "of 100 inotify watches are used" in done.stdout, done
    assert done.returncode == 1
    assert "inotify watches are used" not in shell(command).stdout


def test_kernel_without_a_kind_of_device(netns: Netns) -> None:
    assert examine(netns, "kernel").status == "fine"
    lacking = netns.call(lambda: missing(["veth", "no-such-kind"]))
    assert list(lacking) == ["no-such-kind"]
    (found,) = judge(lacking)
    assert "the kernel makes no no-such-kind device" in str(found)
    assert "p-veth" not in netns.ip("link"), "nothing is left of what was tried"


def test_machine_without_nft(netns: Netns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = judge(netns.call(lambda: missing(["vxlan"])))
    assert "no `nft` on the PATH" in str(found)
    report = examine(netns, "kernel")
    assert remedies(report) == ["apt-get install nftables"]


def test_no_namespace_to_try_things_in() -> None:
    limit = "sysctl -qw user.max_net_namespaces=0"
    command = f"{limit} && {OVERLAYCTL} doctor --local --only kernel"
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", command]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done
    assert "unknown  no network namespace to try things in" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "small", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk(netns: Netns, small_disk: Path) -> None:
    flag = f"--state-dir={small_disk}/not/there/yet"
    assert examine(netns, "disk", flag).status == "fine"
    (small_disk / "log").write_bytes(bytes(20 << 20))
    assert "when it is full no pod can be attached" in said(examine(netns, "disk", flag))
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_bytes(bytes(20 << 20))
    full = said(examine(netns, "disk", flag))
    assert full.startswith("0.0 MiB free at ")
    assert full.endswith(": no pod can be attached")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "is read-only" in said(examine(netns, "disk", flag))


class WrongClock(http.server.BaseHTTPRequestHandler):
    """Answers as etcd does, with a Date that is ``ahead_s`` from now."""

    ahead_s = 0.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.ahead_s)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        pass


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(0.0, ""), (3600.0, "s behind that of"), (-3600.0, "s ahead of that of")],
)
def test_clock_that_differs_from_the_one_of_etcd(ahead_s: float, words: str) -> None:
    handler = type("Handler", (WrongClock,), {"ahead_s": ahead_s})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            endpoint = f"--etcd-endpoints=http://127.0.0.1:{server.server_port}"
            report = run_one(BY_NAME["clock"], facts_of(endpoint))
        finally:
            server.shutdown()
            thread.join()
    assert (report.status == "finding") is bool(words), report
    assert words in said(report)


def test_disk_without_room_for_files(netns: Netns, tmp_path: Path) -> None:
    place = tmp_path / "few"
    place.mkdir()
    options = "size=32m,nr_inodes=300"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "few", str(place)], check=True)
    try:
        flag = f"--state-dir={place}"
        assert examine(netns, "disk", flag).status == "fine"
        for number in range(100):
            (place / str(number)).touch()
        assert "files can be made at" in said(examine(netns, "disk", flag))
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_machine_without_br_netfilter(node: Node) -> None:
    node.run("ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0")
    flags = f"--local --only br-netfilter --socket={node.place}/cni.sock"
    # An empty folder over /proc/sys/net/bridge, as without the module.
    hide = "mount -t tmpfs none /proc/sys/net/bridge"
    hidden = f"unshare --mount sh -c '{hide} && {OVERLAYCTL} doctor {flags}'"
    shown = node.here.run("sh", "-c", hidden, check=False)
    assert "pods are on cni0 and br_netfilter is not loaded" in shown
    assert "modprobe br_netfilter; sysctl -w net/bridge/bridge-nf-call-iptables=1" in shown


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_network_configuration_that_sorts_first(netns: Netns, tmp_path: Path) -> None:
    folder, flag = tmp_path / "etc/cni/net.d", f"--root={tmp_path}"
    ours = '{"cniVersion": "1.0.0", "name": "overlay", "plugins": [{"type": "overlay"}]}'
    assert examine(netns, "cni-config", flag).status == "unknown"
    write(folder / "10-overlay.conflist", ours)
    write(folder / "87-podman.conflist", '{"name": "podman", "plugins": [{"type": "bridge"}]}')
    assert examine(netns, "cni-config", flag).status == "fine"
    write(folder / "05-calico.conflist", '{"name": "calico", "plugins": [{"type": "calico"}]}')
    write(folder / "06-broken.conf", "{")
    report = examine(netns, "cni-config", flag)
    assert "05-calico.conflist is another network's and sorts before 10-overlay" in said(report)
    assert "06-broken.conf cannot be read and sorts before" in said(report)
    for command in remedies(report):
        assert shell(command).returncode == 0
    assert examine(netns, "cni-config", flag).status == "fine"
