"""Every command of ``overlayctl``, as a shell runs it, beside an agent that has 1,000 peers.

Each peer's key has an etcd lease of its own, as real nodes' have; a hundred
are measured and tell what they measured.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from bench import agents, cold_join
from bench.bed import Bed, Node, bed
from bench.entries import KernelEntries
from bench.mesh_peers import answering
from bench.options import AgentCommand, Options
from bench.peers import PREFIX, peer
from bench.pods import pods
from bench.table import Table
from overlay.lab import netns
from overlay.mesh.seal import node_tag
from overlay.model.fabric_key import format_fabric_key
from overlay.model.lease import Lease, Owner, format_attributes

_COLUMNS: Final = ("command", "p50 ms", "max ms", "CPU ms", "lines", "status")
_PORT: Final = 9471
_PODS: Final = 20
_KEY: Final = bytes(range(32))
_DAY_S: Final = 86400
_FILLED_S: Final = 60.0
_POLL_S: Final = 0.5
# Without an end of their own, or they change what is measured.
_LEFT_OUT: Final = "leases watch, events --follow, capture (but for its start), node reset, lab, "
_POLICY: Final = """\
{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
 "metadata": {"name": "deny", "namespace": "default"}, "spec": {"podSelector": {}}}
"""


@dataclass(frozen=True, slots=True)
class _Shell:
    """Where a person sits: on the node."""

    bed: Bed
    node: Node

    def run(self, words: Sequence[str]) -> tuple[float, float, "subprocess.CompletedProcess[str]"]:
        """Return wall and processor seconds of one command, and what became of it."""
        command = [
            *netns.command_prefix(self.node.namespace),
            str(Path(sys.executable).parent / "overlayctl"),
            f"--socket={self.node.place / 'state' / 'cni.sock'}",
            f"--etcd-endpoints={self.bed.endpoint()}",
            *words,
        ]
        used, began = os.times(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall_s, now = time.perf_counter() - began, os.times()
        cpu_s = sum(now[2:4]) - sum(used[2:4])
        return wall_s, cpu_s, done


def run(options: Options) -> Iterator[Table]:
    """Return one table, a line for each command."""
    size = options.pick(50, 1000, 1000)
    rounds = options.pick(1, 7, 15)
    agent = AgentCommand.ours()
    agent = replace(agent, words=(*agent.words, "--probe-interval=1s"))
    tags = [node_tag(_id(number)) for number in range(size)]
    with bed() as test, test.node() as node:
        test.etcd.put(f"{PREFIX}/fabric-key", format_fabric_key(_KEY))
        for number in range(size):
            lease = _owned(number)
            key, value = f"{PREFIX}/subnets/{lease.subnet.key}", format_attributes(lease.attributes)
            test.etcd.put(key, value, test.etcd.grant(_DAY_S))
        with (
            answering(test.namespace, "172.17.0.0/16", _PORT, _KEY, tags),
            agents.running(agent, test, node) as running,
            netns.inside(node.namespace, KernelEntries) as entries,
        ):
            cold_join.joined(entries, running, size)
            with pods(agent, node, _PODS) as attached:
                shell = _Shell(test, node)
                ways = _wait_for_rows(shell, size)
                words = _commands(node, attached[0].address)
                yield _table(shell, words, rounds, f"{size:,} peers, {ways:,} ways, {_PODS} pods")


def _table(shell: _Shell, commands: Sequence[str], rounds: int, about: str) -> Table:
    rows, records = [], []
    for words in commands:
        found = [shell.run(words.split()) for _ in range(rounds + 1)][1:]  # the first is warmer's
        walls = [wall * 1000 for wall, _, _ in found]
        cpu_ms = median(cpu for _, cpu, _ in found) * 1000
        done = found[-1][2]
        shown = words.replace(str(shell.node.place), "")
        lines = str(len(done.stdout.splitlines()))
        figures = (f"{median(walls):.0f}", f"{max(walls):.0f}", f"{cpu_ms:.0f}")
        rows.append((f"`{shown}`", *figures, lines, str(done.returncode)))
        records.append({"command": shown, "wall_ms": walls, "cpu_ms": cpu_ms})
    notes = (f"Beside {about}. Left out: {_LEFT_OUT}and what waits for others (`--live`).",)
    return Table(_COLUMNS, tuple(rows), tuple(records), notes)


def _commands(node: Node, pod: str) -> list[str]:
    config, policy = node.place / "net.json", node.place / "policy.json"
    config.write_text('{"Network": "10.244.0.0/16"}')
    policy.write_text(_POLICY)
    far = str(peer(7).subnet.networks()[0][5])
    return [
        "--version",
        *("network show", f"network validate {config}"),
        *("leases", "leases --no-ttl", "leases -o json", f"leases show {far}"),
        *("status", "peers", "peers -o json", "diff"),
        *("ipam list", "ipam check"),
        *(f"explain {pod} {far}", f"explain {far} {pod}", f"explain {pod} 192.0.2.1"),
        "doctor",
        "doctor --local",
        *("mesh", "mesh --links", "mesh --links -o json", "mtu"),
        *("events", "events -o json"),
        *("policy list", "pod list", f"policy diff {policy}"),
        *("capture --seconds 0.01", "completion bash", "cni --help"),
    ]


def _wait_for_rows(shell: _Shell, size: int) -> int:
    """Return how many ways are known, once no more come."""
    wanted, ways = min(size, 100) * min(size - 1, 100), 0
    deadline = time.monotonic() + _FILLED_S
    while ways < wanted * 0.9 and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        done = shell.run(["-o", "json", "mesh"])[2]
        ways = len(json.loads(done.stdout)["links"]) if done.stdout else 0
    return ways


def _owned(number: int) -> Lease:
    lease = peer(number)
    owner = Owner(_id(number), f"node-{number}", "0.1.0", "2026-11-01T00:00:00Z")
    return replace(lease, attributes=replace(lease.attributes, owner=owner))


def _id(number: int) -> str:
    return f"node-id-{number}"
