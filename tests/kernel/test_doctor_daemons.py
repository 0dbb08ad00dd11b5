"""Checks of doctor for programs of the host that touch others' devices and packets.

A program runs when a process of its name is in the node's namespace; it is a
copy of ``sleep`` here, for what is judged is what its files and rules say.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from overlay.cli.doctor.fabric import Fabric
from overlay.cli.doctor.lazy import Lazy
from overlay.cli.doctor.runner import Report, run_one
from tests.kernel.doctors import BY_NAME, Node, facts_of, lease, remedies, said
from tests.kernel.netns import MakeNetns, Netns, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"

Start = Callable[[str], None]


@pytest.fixture
def node(make_netns: MakeNetns, tmp_path: Path) -> Node:
    return Node(make_netns, tmp_path, {"10.244.2.0-24": lease(2)})


@pytest.fixture
def start(node: Node, tmp_path: Path) -> Iterator[Start]:
    """Return a function that runs a program of some name in the node's namespace."""
    started: list[subprocess.Popen[bytes]] = []
    sleep = shutil.which("sleep")
    assert sleep is not None

    def run(name: str) -> None:
        copy = tmp_path / name
        shutil.copy(str(Path(sleep).resolve()), copy)
        process = node.here.call(lambda: subprocess.Popen([str(copy), "600"]))
        started.append(process)
        comm = Path(f"/proc/{process.pid}/comm")
        eventually(lambda: comm.read_text().strip() == name[:15])

    yield run
    for process in started:
        process.kill()
        process.wait(10)


def write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def carry_out(command: str, root: Path) -> None:
    """Carry out what a remedy writes, below ``root`` and without telling the program."""
    written = command.rpartition(" && ")[0].replace(" /etc/", f" {root}/etc/")
    subprocess.run(["sh", "-c", written], check=True)


def test_networkd_that_removes_routes_of_others(node: Node, start: Start, tmp_path: Path) -> None:
    flag = f"--root={tmp_path}"
    write(tmp_path, "etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=perhaps\n")
    assert node.check("networkd", flag).status == "fine", "it does not run"
    start("systemd-networkd")
    report = node.check("networkd", flag)
    assert "ManageForeignRoutes=perhaps, ManageForeignRoutingPolicyRules=yes" in said(report)
    for command in remedies(report):
        carry_out(command, tmp_path)
    assert node.check("networkd", flag).status == "fine"


@pytest.mark.parametrize(
    ("match", "is_ours"),
    [
        ("Name=*", True),
        ("Name=eth0 overlay*", True),
        ("Kind=vxlan", True),
        ("Name=eth*", False),
        ("Name=* !overlay*", False),
        ("Name=!eth*", True),
        ("Driver=vxlan", True),
        ("Name=*\nDriver=virtio_net", False),
        ("Type=wlan", False),
    ],
)
def test_networkd_that_takes_our_device(
    node: Node, start: Start, tmp_path: Path, match: str, is_ours: bool
) -> None:
    flag, foreign = (
        f"--root={tmp_path}",
        "ManageForeignRoutes=no\nManageForeignRoutingPolicyRules=0",
    )
    write(tmp_path, "etc/systemd/networkd.conf.d/1.conf", f"[Network]\n{foreign}\n")
    write(tmp_path, "usr/lib/systemd/network/50-all.network", f"[Match]\n{match}\n[Network]\n")
    start("systemd-networkd")
    report = node.check("networkd", flag)
    assert ("50-all.network matches overlay.1" in said(report)) is is_ours
    write(tmp_path, "etc/systemd/network/x", "")
    for command in remedies(report):
        carry_out(command, tmp_path)
    assert node.check("networkd", flag).status == "fine"


def test_drop_in_that_leaves_our_device_alone(node: Node, start: Start, tmp_path: Path) -> None:
    flag = f"--root={tmp_path}"
    foreign = "ManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no"
    write(tmp_path, "etc/systemd/networkd.conf", f"[Network]\n{foreign}\n")
    write(tmp_path, "usr/lib/systemd/network/50-all.network", "[Match]\nName=*\n")
    start("systemd-networkd")
    assert "50-all.network matches overlay.1" in said(node.check("networkd", flag))
    drop_in = "etc/systemd/network/50-all.network.d/ours.conf"
    write(tmp_path, drop_in, "[Link]\nUnmanaged=yes\n")
    assert node.check("networkd", flag).status == "fine"
    write(tmp_path, drop_in, "[Match]\nName=eth*\n")
    assert node.check("networkd", flag).status == "finding", "the list has grown"
    write(tmp_path, drop_in, "[Match]\nName=\nName=eth*\n")
    assert node.check("networkd", flag).status == "fine"


@pytest.mark.parametrize(
    ("file", "text", "is_left_alone"),
    [
        ("etc/NetworkManager/NetworkManager.conf", "[main]\nplugins=keyfile\n", False),
        (
            "etc/NetworkManager/conf.d/a.conf",
            "[keyfile]\nunmanaged-devices=mac:02:00:00:00:00:01;interface-name:overlay.*\n",
            True,
        ),
        (
            "usr/lib/NetworkManager/conf.d/a.conf",
            "[device-ours]\nmatch-device=interface-name:overlay*\nmanaged=0\n",
            True,
        ),
        ("run/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=type:wifi\n", False),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=*\n", True),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=type:vxlan\n", True),
        (
            "etc/NetworkManager/conf.d/a.conf",
            "[keyfile]\nunmanaged-devices=*,except:interface-name:overlay*\n",
            False,
        ),
        (
            "etc/NetworkManager/conf.d/a.conf",
            "[keyfile]\nunmanaged-devices=except:type:ethernet\n",
            True,
        ),
        (
            "etc/NetworkManager/conf.d/a.conf",
            "[device-x]\nmatch-device=driver:vxlan\nmanaged=0\n",
            True,
        ),
    ],
)
def test_network_manager_that_manages_our_device(
    node: Node, start: Start, tmp_path: Path, file: str, text: str, is_left_alone: bool
) -> None:
    flag = f"--root={tmp_path}"
    write(tmp_path, file, text)
    assert node.check("network-manager", flag).status == "fine", "it does not run"
    start("NetworkManager")
    report = node.check("network-manager", flag)
    assert ("no file of it says to leave overlay.1 alone" in said(report)) is not is_left_alone
    write(tmp_path, "etc/NetworkManager/conf.d/x", "")
    for command in remedies(report):
        carry_out(command, tmp_path)
    assert node.check("network-manager", flag).status == "fine"


def test_files_that_we_ship_are_enough(node: Node, start: Start, tmp_path: Path) -> None:
    places = {
        "systemd/10-overlay.network": "etc/systemd/network/10-overlay.network",
        "systemd/overlay-networkd.conf": "etc/systemd/networkd.conf.d/overlay.conf",
        "NetworkManager/overlay.conf": "etc/NetworkManager/conf.d/overlay.conf",
    }
    for name, place in places.items():
        write(tmp_path, place, (MANIFESTS / name).read_text())
    write(tmp_path, "usr/lib/systemd/network/50-all.network", "[Match]\nName=*\n")
    start("systemd-networkd")
    start("NetworkManager")
    for name in ("networkd", "network-manager"):
        report = node.check(name, f"--root={tmp_path}")
        assert report.status == "fine", report


def test_program_in_another_namespace_is_not_here(
    node: Node, start: Start, make_netns: MakeNetns
) -> None:
    start("flanneld")
    assert "flanneld still runs" in said(node.check("flannel"))
    node.here, there = make_netns(), node.here
    assert node.check("flannel").status == "fine"
    node.here = there


# What firewalld 1.3 makes of a default zone, shortened: by zone in policies, else reject.
FIREWALLD = """
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES { goto filter_IN_public; }
  chain filter_FORWARD_ZONES { }
  chain filter_IN_public { tcp dport 22 accept; }
}
"""
DOUBTFUL = """
insert rule inet firewalld filter_FORWARD meta cgroup 7 accept
insert rule inet firewalld filter_INPUT meta cgroup 7 accept
"""
TRUSTED = """
insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.244.0.0/16 accept
insert rule inet firewalld filter_IN_public udp dport 8472 accept
"""


def test_firewalld_without_a_zone_for_pods(node: Node) -> None:
    assert node.check("firewalld").status == "fine"
    node.here.nft("-f", "-", stdin=FIREWALLD)
    report = node.check("firewalld")
    assert "firewalld rejects what comes out of overlay.1 for pods" in said(report)
    assert "firewalld keeps out VXLAN (UDP 8472): rule `reject" in said(report)
    assert any("--zone=trusted --add-source=10.244.0.0/16" in text for text in remedies(report))
    assert any("--add-port=8472/udp" in text for text in remedies(report))
    assert node.check("forward-policy").status == "fine", "said once"
    assert node.check("port-open").status == "fine", "said once"
    node.here.nft("-f", "-", stdin=TRUSTED)
    assert node.check("firewalld").status == "fine", node.check("firewalld")


RULES = Path(__file__).parent / "rules"


def test_ufw_that_keeps_the_tunnel_out(node: Node) -> None:
    assert node.check("ufw").status == "fine"
    node.here.run("iptables-restore", stdin=(RULES / "ufw.rules").read_text())
    report = node.check("ufw")
    assert "ufw lets no VXLAN in (UDP 8472): the policy" in said(report)
    assert remedies(report) == ["ufw allow proto udp to any port 8472"]
    # What `ufw allow` adds.
    node.run("iptables -A ufw-user-input -p udp -m udp --dport 8472 -j ACCEPT")
    assert node.check("ufw").status == "fine", said(node.check("ufw"))


PEER6 = ip_address("2001:db8::2")
FABRIC6 = Fabric((), (), (), (), (PEER6,))


@pytest.mark.parametrize(
    ("program", "rules", "fabric"),
    [("iptables", "ufw.rules", None), ("ip6tables", "ufw6.rules", FABRIC6)],
    ids=["IPv4", "IPv6"],
)
def test_ufw_before_the_first_agent(
    netns: Netns, program: str, rules: str, fabric: Fabric | None
) -> None:
    netns.ip("link", "add", "eth0", "type", "bridge")
    netns.ip("link", "set", "eth0", "up")
    for family, address in (("-4", "192.0.2.1/24"), ("-6", "2001:db8::1/64")):
        netns.ip("addr", "add", address, "dev", "eth0")
        netns.ip(family, "route", "add", "default", "dev", "eth0")
    netns.run(f"{program}-restore", stdin=(RULES / rules).read_text())

    def check(name: str) -> Report:
        def run() -> Report:
            facts = facts_of()
            if fabric is not None:
                facts = replace(facts, fabric=Lazy(lambda: fabric))
            return run_one(BY_NAME[name], facts)

        return netns.call(run)

    report = check("ufw")
    assert "ufw lets no VXLAN in (UDP 8472): the policy" in said(report)
    user = "ufw-user-input" if program == "iptables" else "ufw6-user-input"
    netns.run(program, "-A", user, "-p", "udp", "--dport", "8472", "-j", "ACCEPT")
    assert check("ufw").status == "fine", check("ufw")


def test_rule_that_cannot_be_read_is_no_finding(node: Node) -> None:
    node.here.run("iptables-restore", stdin=(RULES / "ufw.rules").read_text())
    node.run("iptables -I ufw-user-input -m u32 --u32 '0>>22&0x3C@4=0x29' -j ACCEPT")
    node.here.nft("-f", "-", stdin=FIREWALLD)
    node.here.nft("-f", "-", stdin=DOUBTFUL)
    for name in ("ufw", "firewalld"):
        report = node.check(name)
        assert report.status == "unknown", report
        assert "may" in str(report.verdicts)
