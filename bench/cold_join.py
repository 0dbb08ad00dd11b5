"""Cold join: from the start of ``overlayd`` until every entry of N peers is right.

In one network namespace: etcd on loopback, N leases in flannel's form (no
``Overlay`` facts), an underlay with an address, and the agent as a process of
its own. The floor, in the same run: listing and parsing the leases, and
setting the same entries through packed netlink alone.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network, ip_interface
from pathlib import Path
from typing import Final

from overlay.kernel.netlink import NetlinkKernel
from overlay.lab import netns
from overlay.lab.etcd import EmbeddedEtcd
from overlay.model.address import Family
from overlay.model.kernel import FdbEntry, Neighbor, Route
from overlay.model.lease import Lease, LeaseAttributes, format_attributes
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity, Underlay, vtep_mac
from overlay.model.subnet import Subnet
from overlay.plan.diff import diff
from overlay.plan.planner import Site, desired
from overlay.plan.registry import load_backend

CONFIG: Final = '{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}'
_ROUTES: Final = 2  # for each peer: its subnet, and its address for what pods send to nodes
_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """One join: seconds from exec to right, CPU seconds and peak memory of the agent, floors."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    list_s: float
    netlink_s: float


def peer(i: int) -> Lease:
    """Return peer number ``i``'s lease, as flannel would have written it."""
    return Lease(
        Subnet(IPv4Network(((10 << 24) + ((i + 256) << 8), 24))),
        LeaseAttributes(
            "vxlan",
            {Family.IPV4: IPv4Address((172 << 24) + (16 << 16) + i + 10)},
            {Family.IPV4: {"VNI": 1, "VtepMAC": vtep_mac(f"peer{i}", 1, Family.IPV4)}},
        ),
    )


def measure(peers: int) -> Run:
    """Make one cold join, by a process inside a network namespace, and return what it took."""
    with _namespace() as name:
        command = [*netns.command_prefix(name), sys.executable, "-m", "bench.cold_join", str(peers)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=4 * _LIMIT_S)
    return Run(**json.loads(done.stdout))


def _measure_inside(peers: int) -> Run:
    with tempfile.TemporaryDirectory() as place, EmbeddedEtcd(Path(place) / "etcd") as etcd:
        url = etcd.endpoint
        _write_leases(url, peers)
        list_s = _time_list(url)
        started = time.perf_counter()
        agent = _start_agent(url, Path(place))
        try:
            wall_s = _await_entries(agent, peers, started)
            cpu_s, peak_mib = _usage(agent.pid)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(10)
    subprocess.run(["ip", "link", "del", "overlay.1"], check=True)
    return Run(wall_s, cpu_s, peak_mib, list_s, _time_netlink(peers))


@contextlib.contextmanager
def _namespace() -> Iterator[str]:
    name = f"ovl-bench-{os.getpid()}"
    netns.add([name])
    try:
        netns.ip_batch(
            name,
            [
                "link set lo up",
                "link add eth0 type veth peer name eth1",
                "link set eth1 up",
                "link set eth0 up",
                "addr add 172.16.0.1/12 dev eth0",
            ],
        )
        yield name
    finally:
        netns.delete([name])


def _write_leases(url: str, peers: int) -> None:
    import etcd3

    client = etcd3.client(host="127.0.0.1", port=int(url.rsplit(":", 1)[1]))
    client.put("/coreos.com/network/config", CONFIG)
    ttl = client.lease(86400)
    batch = 100
    for first in range(0, peers, batch):
        leases = [peer(i) for i in range(first, min(first + batch, peers))]
        client.transaction(
            compare=[],
            failure=[],
            success=[
                client.transactions.put(
                    f"/coreos.com/network/subnets/{each.subnet.key}",
                    format_attributes(each.attributes),
                    lease=ttl,
                )
                for each in leases
            ],
        )
    client.close()


def _start_agent(url: str, place: Path) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / "overlayd"
    flags = {
        "etcd-endpoints": url,
        "iface": "eth0",
        "node-name": "bench",
        "state-dir": place / "state",
        "subnet-file": place / "subnet.env",
        "log-level": "warning",
    }
    return subprocess.Popen([str(program), *(f"--{k}={v}" for k, v in flags.items())])


def _await_entries(agent: subprocess.Popen[bytes], peers: int, started: float) -> float:
    """Return the seconds until the kernel holds every route, neighbor and FDB entry."""
    with contextlib.closing(NetlinkKernel()) as kernel:
        while True:
            objects = kernel.dump()
            now = time.perf_counter() - started
            counts = [
                sum(isinstance(o, kind) for o in objects) for kind in (FdbEntry, Neighbor, Route)
            ]
            if counts == [peers, peers, _ROUTES * peers]:
                return now
            if agent.poll() is not None or now > _LIMIT_S:
                msg = f"the agent ended, or did not join within {_LIMIT_S:.0f} s: {counts}"
                raise RuntimeError(msg)
            time.sleep(0.01)


def _usage(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(fields[i]) for i in (11, 12, 13, 14))  # with children: nft
    status = Path(f"/proc/{pid}/status").read_text()
    peak_kib = next(int(li.split()[1]) for li in status.splitlines() if li.startswith("VmHWM"))
    return ticks / os.sysconf("SC_CLK_TCK"), peak_kib / 1024


def _time_list(url: str) -> float:
    """Return the seconds that listing and parsing all leases takes: the store's floor."""
    from overlay.store.etcd import EtcdLeaseStore
    from overlay.store.etcd_config import EtcdConfig

    store = EtcdLeaseStore(EtcdConfig(endpoints=(url,)))
    store.time_to_live(peer(0))  # connects
    started = time.perf_counter()
    store.view()
    elapsed = time.perf_counter() - started
    store.close()
    return elapsed


def _time_netlink(peers: int) -> float:
    """Return the seconds that packed netlink alone takes for the same entries."""
    config = parse_network_config(CONFIG)
    node = NodeIdentity("bench", "bench")
    v4 = Family.IPV4
    underlay = Underlay(
        "eth0",
        1500,
        {v4: ip_interface("172.16.0.1/12")},
        {v4: IPv4Address("172.16.0.1")},
    )
    own = Lease(Subnet(IPv4Network("10.0.0.0/24")), LeaseAttributes("vxlan"))
    site = Site(config, load_backend(config, node), own, underlay)
    leases = {each.subnet.key: each for each in map(peer, range(peers))}
    with contextlib.closing(NetlinkKernel()) as kernel:
        kernel.apply(diff(desired(site, {}).objects.values(), ()))
        ops = diff(desired(site, leases).objects.values(), kernel.dump())
        started = time.perf_counter()
        failures = kernel.apply(ops)
        elapsed = time.perf_counter() - started
    if failures:
        raise RuntimeError(str(failures[0]))
    return elapsed


def main(sizes: tuple[int, ...] = (100, 1000, 5000), rounds: int = 3) -> list[dict[str, object]]:
    """Print the table and return its rows."""
    if shutil.which("ip") is None:
        raise SystemExit("bench: the `ip` command is missing; run `make setup`")
    print("peers  wall s (median, min-max)  CPU s  peak MiB  list s  netlink s  wall/floor")
    rows: list[dict[str, object]] = []
    for peers in sizes:
        runs = [measure(peers) for _ in range(rounds)]
        median = {k: statistics.median(asdict(r)[k] for r in runs) for k in asdict(runs[0])}
        walls = [r.wall_s for r in runs]
        floor = median["list_s"] + median["netlink_s"]
        print(
            f"{peers:5}  {median['wall_s']:.2f} ({min(walls):.2f}-{max(walls):.2f})"
            f"          {median['cpu_s']:.2f}   {median['peak_mib']:.0f}"
            f"        {median['list_s']:.3f}   {median['netlink_s']:.3f}"
            f"      {median['wall_s'] / floor:.1f}"
        )
        rows.append({"peers": peers, **median, "runs": [asdict(r) for r in runs]})
    print(json.dumps(rows), file=sys.stderr)
    return rows


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_inside(int(sys.argv[1])))))
