"""The lab that faults are planted in: four nodes with traffic, and etcd of three members."""

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from overlay.lab import agents, netns, pods, processes
from overlay.lab.chaos import peers
from overlay.lab.chaos.cast import DUAL_STACK, SUBJECT, SUBNET_LEN, VXLAN
from overlay.lab.chaos.picture import PARTS, PARTS_V6, Picture, difference, is_same, picture
from overlay.lab.chaos.stream import Stream
from overlay.lab.errors import LabError
from overlay.lab.fabric import Lab, Progress
from overlay.lab.topology import POD_NETWORKS, Host
from overlay.model.address import Family, IPInterface

PREFIX: Final = "/coreos.com/network/"
LEASES: Final = f"{PREFIX}subnets/"
POLL_S: Final = 0.002
# An object that is repaired more than five times within 30 s is repaired ever
# later; a new agent has no such memory. It has loaded all it needs after a second.
_REPAIRS_OF_ONE_AGENT: Final = 5
_WARM_S: Final = 1.5
_FLOW_S: Final = 0.05
SETTLE_S: Final = 20.0
# Notifications are what is measured, so the audit is out of the way.
_FLAGS: Final = ("--audit-interval=1h",)
# The crowd of peers goes as one, after most faults; that is held back only in its own row.
_OFF: Final = "--max-prune=off"


class Stage:
    """The lab with what the faults need of it; ``outage_s`` is how long stores stay away."""

    def __init__(
        self,
        lab: Lab,
        stream: Stream,
        outage_s: float,
        seed: int,
        progress: Progress,
        setting: str = VXLAN,
    ) -> None:
        self.lab = lab
        self.setting = setting
        self.stream = stream
        self.outage_s = outage_s
        self.random = random.Random(seed)  # noqa: S311 - moments, no secrets
        self.progress = progress
        self.etcd = lab.etcd
        self.gateway = lab.etcd.gateway
        self._nodes: Mapping[str, Host] = {node.name: node for node in lab.topology.nodes}
        self._agents = {name: lab.agent(name) for name in self._nodes}
        self.can_prune = _has_flag("--max-prune")
        self._flags = (*_FLAGS, _OFF) if self.can_prune else _FLAGS
        self._baseline: dict[str, Picture] = {}
        self._started_at = dict.fromkeys(self._nodes, 0.0)
        self._repairs = 0
        self._numbers = itertools.count()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of all nodes."""
        return tuple(self._nodes)

    # Agents

    def start(
        self,
        node: str,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> float:
        """Start a node's agent; return the moment before (``time.monotonic``).

        ``wrapper`` is a command in the node's namespace that executes its arguments.
        """
        host, place = self._nodes[node], self.lab.dir
        command = agents.command(self.lab.topology, host, place, (*self._flags, *flags))
        inside = len(netns.command_prefix(host.namespace))
        command[inside:inside] = wrapper
        self._started_at[node] = at = time.monotonic()
        self._agents[node] = processes.spawn(
            f"overlayd {node}",
            command,
            place.log(node),
            {"PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        return at

    def kill(self, node: str) -> None:
        """End a node's agent as a crash would."""
        self.signal(node, signal.SIGKILL)
        processes.stop([self._agents[node]])

    def terminate(self, node: str) -> None:
        """End a node's agent in good order; nothing happens where it does not run."""
        processes.stop([self._agents[node]])

    def restart(self, node: str, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        """End a node's agent in good order, start it and wait until it is ready."""
        self.terminate(node)
        self.start(node, *flags, environment=environment)
        self.await_that(lambda: self.is_ready(node), f"the agent of {node} is ready")

    def calm(self) -> None:
        """Count a repair by the subject's agent, and see that it is made without a grudge."""
        if self._repairs >= _REPAIRS_OF_ONE_AGENT:
            self.restart(SUBJECT)
            self._repairs = 0
        self._repairs += 1
        time.sleep(max(0.0, self._started_at[SUBJECT] + _WARM_S - time.monotonic()))

    def signal(self, node: str, number: signal.Signals) -> None:
        """Send a signal to a node's agent, if it runs."""
        process = self._agents[node]
        if process.is_alive:
            os.kill(process.pid, number)

    def is_running(self, node: str) -> bool:
        """Return whether the agent that was started last still runs."""
        return self._agents[node].is_alive

    def is_ready(self, node: str) -> bool:
        """Return whether a node's agent runs and says that it is ready."""
        return self.is_running(node) and self.reason(node) is None

    def reason(self, node: str) -> str | None:
        """Return why a node's agent is not ready."""
        return netns.inside(self.namespace(node), agents.readiness)

    def log_size(self, node: str) -> int:
        """Return how much a node's agent has logged, in bytes."""
        return self._log(node).stat().st_size

    def logged(self, node: str, since: int) -> str:
        """Return what a node's agent logged behind ``since`` bytes."""
        with self._log(node).open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def cpu_s(self, node: str) -> float:
        """Return the processor time that a node's agent has used, in seconds (proc(5))."""
        stat = Path(f"/proc/{self._agents[node].pid}/stat").read_text()
        ticks = stat[stat.rindex(")") + 2 :].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    # Nodes and their kernels

    def namespace(self, name: str) -> str:
        """Return the namespace of a node, or of the underlay."""
        return self.lab.topology.namespace_of(name)

    def public(self, node: str, family: Family = Family.IPV4) -> str:
        """Return a node's address on the underlay."""
        return str(self._nodes[node].address(family))

    def interface(self, node: str) -> IPInterface:
        """Return a node's address on the underlay, with its network."""
        return self._nodes[node].interfaces[Family.IPV4]

    def gateway_of(self, node: str) -> str:
        """Return the address of a node's router."""
        return str(self._nodes[node].gateways[Family.IPV4])

    def run(self, place: str, *words: str) -> None:
        """Run a command in a node or in the underlay. Raises LabError when it fails."""
        self.output(place, *words)

    def output(self, place: str, *words: str) -> str:
        """Return what a command in a node or in the underlay prints. Raises LabError."""
        command = [*netns.command_prefix(self.namespace(place)), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            msg = f"{' '.join(words)} in {place}: {done.stderr.strip() or done.stdout.strip()}"
            raise LabError(msg)
        return done.stdout

    def baseline(self, node: str) -> Picture:
        """Return what a node's kernel held when all was well."""
        return self._baseline[node]

    def is_node_same(self, node: str, first: str) -> bool:
        """Return whether a node's kernel is as it was when all was well."""
        return is_same(self.namespace(node), self._baseline[node], first)

    def is_flowing(self) -> bool:
        """Return whether no packet of the next few is lost; takes a third of a second."""
        since = self.stream.mark()
        time.sleep(_FLOW_S)
        return self.stream.lost(since, self.stream.mark()).on_the_way == 0

    # Leases

    def subnet_key(self, node: str) -> str:
        """Return the key of the lease that a node's subnet file speaks of."""
        file = pods.read_subnet_file(self.lab.dir.subnet_file(node))
        return str(file.subnets[Family.IPV4].network).replace("/", "-")

    def leases(self) -> dict[str, bytes]:
        """Return the values of all leases, by key. Raises LabError."""
        return {key: stored.value for key, stored in self.gateway.under(LEASES).items()}

    def put(self, leases: Mapping[str, bytes]) -> None:
        """Put leases that end with nobody."""
        self.gateway.put({LEASES + key: value for key, value in leases.items()})

    def delete(self, keys: Sequence[str]) -> None:
        """Delete leases."""
        self.gateway.delete([LEASES + key for key in keys])

    def fakes(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return leases of nodes that do not exist, no two of them alike."""
        return {key: peers.fake_lease(next(self._numbers)) for key in keys}

    def moved(self, leases: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return leases as they are when their nodes come back with other MAC addresses."""
        return {key: peers.with_mac(value, next(self._numbers)) for key, value in leases.items()}

    def free_keys(self, count: int) -> list[str]:
        """Return keys of subnets that nobody has leased."""
        return peers.free_keys(POD_NETWORKS[Family.IPV4], SUBNET_LEN, self.leases())[:count]

    def is_in_step(self, nodes: Sequence[str], leases: Mapping[str, bytes]) -> bool:
        """Return whether nodes have exactly the entries that the leases ask for."""
        return all(not self.out_of_step(node, leases) for node in nodes)

    def out_of_step(self, node: str, leases: Mapping[str, bytes]) -> str:
        """Return what a node has not, or has too much, in a line; empty when all is right.

        Only of IPv4 in a tunnel it is known what leases ask for.
        """
        if self.setting != VXLAN:
            return ""
        wanted = peers.expected(leases, self.subnet_key(node))
        return wanted.difference(peers.observed(self.namespace(node)))

    # All of it

    def begin(self) -> None:
        """Take up the agents with the suite's flags, and note what is right."""
        for node in self._nodes:
            self.terminate(node)
            self.start(node)
        self.rebase()

    def rebase(self) -> None:
        """Wait until all is well, and note that as what is right from here on."""
        self.await_that(lambda: all(map(self.is_ready, self._nodes)), "all agents are ready")
        leases = self.leases()
        self.await_that(
            lambda: self.is_in_step(tuple(self._nodes), leases), "all nodes are in step"
        )
        self.await_that(self.is_flowing, "packets pass")
        self._baseline = {node: self._picture(node) for node in self._nodes}

    def is_whole(self) -> bool:
        """Return whether every agent is ready and every kernel as it was when all was well."""
        return all(map(self.is_ready, self._nodes)) and not any(self.differences().values())

    def differences(self) -> dict[str, list[str]]:
        """Return by node what is not as it was when all was well."""
        return {
            node: difference(wanted, self._picture(node)) for node, wanted in self._baseline.items()
        }

    def await_that(
        self, condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_S
    ) -> None:
        """Poll until ``condition`` holds. Raises LabError that says ``what`` did not come."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                msg = f"not within {timeout_s:.0f} s: {what}"
                raise LabError(msg)
            time.sleep(POLL_S)

    def _picture(self, node: str) -> Picture:
        parts = (*PARTS, *PARTS_V6) if self.setting == DUAL_STACK else PARTS
        return picture(self.namespace(node), parts)

    def _log(self, node: str) -> Path:
        return self.lab.dir.log(node)


def _has_flag(flag: str) -> bool:
    """Return whether the agent knows a flag."""
    command = [*agents.program("overlayd", "overlay.agent.program"), "--help"]
    return flag in subprocess.run(command, capture_output=True, text=True, check=True).stdout
