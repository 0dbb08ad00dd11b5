"""A lab as a whole: up, status, test, down."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from overlay.lab import agents, netns, pods, processes, signals, underlay
from overlay.lab.errors import LabError, LabUsageError, NoLabError
from overlay.lab.etcd_cluster import EtcdCluster
from overlay.lab.matrix import Endpoint, Expected, Flow, Result, Role, flows
from overlay.lab.pods import Pod, SubnetFile
from overlay.lab.probe import observe
from overlay.lab.processes import Process
from overlay.lab.state import STATE_ROOT, LabState, StateDir
from overlay.lab.topology import Host, LabOptions, Topology, plan
from overlay.model.address import IPAddress
from overlay.model.egress import EgressMode

Progress: TypeAlias = Callable[[str], None]

_TOOLS: Final = ("ip", "nft")


def silent(_: str) -> None:
    """Tell nobody."""


class Lab:
    """One lab, by its options; whether it is up is for ``state`` to say."""

    def __init__(
        self, options: LabOptions, *, progress: Progress = silent, root: Path = STATE_ROOT
    ) -> None:
        self.options = options
        self.topology: Topology = plan(options)
        self.dir = StateDir.of(options.name, root)
        self._progress = progress
        self.etcd = EtcdCluster(
            self.dir.path / "etcd",
            client_urls=self.topology.etcd_endpoints,
            namespace=self.topology.underlay,
        )

    @classmethod
    def load(cls, name: str, *, progress: Progress = silent, root: Path = STATE_ROOT) -> "Lab":
        """Return the lab called ``name`` that is up. Raises NoLabError."""
        state = StateDir.of(name, root).read()
        return cls(state.options, progress=progress, root=root)

    def up(self) -> None:
        """Bring the lab up, pods included; what fails half-way is taken down again.

        Raises LabExistsError, LabUsageError when not root, and LabError with
        the end of the log of what did not start.
        """
        require_root()
        state = self.dir.create(self.options, [node.name for node in self.topology.nodes])
        try:
            self._up(state)
        except BaseException:
            self._progress("failed; taking down what is up")
            with signals.held():
                self.down()
            raise

    def down(self) -> None:
        """End what the lab started and remove it all; repeating it is safe."""
        require_root()
        try:
            state = self.dir.read()
        except NoLabError:
            self.dir.remove()  # nothing is made before the first state is written
            return
        topology = plan(state.options)
        processes.stop(state.processes)
        # A program that was killed between starting a process and writing it
        # down leaves it here; nobody else is in these namespaces.
        processes.stop(strays(topology))
        netns.delete(topology.namespaces)
        self.dir.remove()

    def test(self, only: Callable[[Flow], bool] = lambda _: True) -> list[Result]:
        """Return what becomes of every flow (that ``only`` lets through). Raises LabError."""
        require_root()
        self.require_ready()
        endpoints = self.endpoints()
        asked = [flow for flow in self.flows(endpoints) if only(flow)]
        seen = observe(endpoints, asked)
        return [Result(flow, observation) for flow, observation in zip(asked, seen, strict=True)]

    def flows(self, endpoints: Sequence[Endpoint]) -> list[Flow]:
        """Return the flows of the lab with what is expected of each."""
        mtus = {subnet_file.mtu for subnet_file in self.subnet_files().values()}
        expected = Expected(
            egress=self.options.egress,
            pod_mtu=self.topology.expected_pod_mtu or min(mtus),
            underlay_mtu=self.options.mtu,
        )
        return flows(endpoints, self.options.families, expected)

    def endpoints(self) -> list[Endpoint]:
        """Return nodes, pods and the outside host with the addresses they have now."""
        nodes = {node.namespace: node for node in self.topology.nodes}
        own = netns.inside_each(nodes, lambda _: _own_addresses())
        outside = self._endpoint(self.topology.outside, Role.OUTSIDE, frozenset())
        return [
            *(self._endpoint(node, Role.NODE, own[name]) for name, node in nodes.items()),
            *(
                Endpoint(
                    name=pod.name,
                    namespace=pod.namespace,
                    role=Role.POD,
                    addresses=pod.addresses,
                    sources=frozenset(pod.addresses.values()),
                    node=pod.node,
                )
                for pod in self.pods()
            ),
            outside,
        ]

    def pods(self) -> list[Pod]:
        """Return the pods with their addresses."""
        return list(pods.read_pods(self.topology, self.dir))

    def subnet_files(self) -> dict[str, SubnetFile]:
        """Return what each node's agent wrote, by node name. Raises LabError."""
        return {
            node.name: pods.read_subnet_file(self.dir.subnet_file(node.name))
            for node in self.topology.nodes
        }

    def command(self, target: str, words: Sequence[str]) -> list[str]:
        """Return the words that run a command in a node, a pod or the outside host."""
        return [*netns.command_prefix(self.topology.namespace_of(target)), *words]

    def agent(self, node: str) -> Process:
        """Return the process of a node's agent. Raises LabError when it was not started."""
        for process in self.dir.read().processes:
            if process.role == f"overlayd {node}":
                return process
        msg = f"lab {self.options.name} started no agent on {node}"
        raise LabError(msg)

    def require_ready(self) -> None:
        """Raise LabError unless ``up`` came to its end."""
        if not self.dir.read().is_ready:
            name = self.options.name
            msg = f"lab {name} is only half up; `overlayctl lab down --name {name}` clears it"
            raise LabError(msg)

    def _up(self, state: LabState) -> None:
        topology = self.topology
        self._progress(f"underlay: {len(topology.nodes)} nodes and the outside host")
        underlay.build(topology)
        self._progress("etcd")
        state = state.with_processes(self._start_etcd())
        self.dir.write(state)
        self._write_config()
        started = {}
        for node in topology.nodes:
            started[node.name] = agents.start(topology, node, self.dir)
            state = state.with_processes([started[node.name]])
            self.dir.write(state)
        self._progress(f"agents: waiting for {len(started)}")
        agents.wait_ready(topology.nodes, started, self.dir, self._progress)
        files = self.subnet_files()
        if self.options.egress is not EgressMode.ISLAND:
            # In `isolated` too: that nothing gets in must not hang on a missing route.
            underlay.route_pods(topology, {name: file.subnets for name, file in files.items()})
        self._progress(f"pods: {len(topology.pods)}")
        pods.attach(topology, self.dir)
        self.dir.write(replace(state, is_ready=True))
        self._progress("up")

    def _start_etcd(self) -> list[Process]:
        self.etcd.start()
        return [
            processes.identify(f"etcd {member.name}" if number else "etcd", member.pid or 0)
            for number, member in enumerate(self.etcd.members)
        ]

    def _write_config(self) -> None:
        file = self.dir.path / "network.json"
        file.write_text(self.topology.config_text)
        done = subprocess.run(
            [
                *netns.command_prefix(self.topology.underlay),
                *agents.program("overlayctl", "overlay.cli.main"),
                *("network", "init", str(file)),
                *("--etcd-endpoints", ",".join(self.topology.etcd_endpoints)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            msg = f"network config: {done.stderr.strip() or done.stdout.strip()}"
            raise LabError(msg)

    def _endpoint(self, host: Host, role: Role, own: frozenset[IPAddress]) -> Endpoint:
        addresses = {family: host.address(family) for family in self.options.families}
        sources = own | frozenset(addresses.values())
        return Endpoint(host.name, host.namespace, role, addresses, sources, host.name)


@contextlib.contextmanager
def running(options: LabOptions, progress: Progress = silent) -> Iterator[Lab]:
    """Bring a lab up for the length of a ``with`` block; it is taken down whatever happens."""
    lab = Lab(options, progress=progress)
    lab.up()
    try:
        yield lab
    finally:
        with signals.held():
            lab.down()


def require_root() -> None:
    """Raise LabUsageError unless namespaces can be made here."""
    if os.geteuid() != 0:
        msg = "the lab makes network namespaces: run it as root"
        raise LabUsageError(msg)
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        msg = f"not on this machine: {', '.join(missing)}; install iproute2 and nftables"
        raise LabUsageError(msg)


def strays(topology: Topology) -> list[Process]:
    """Return the processes that run in the lab's namespaces, this one left out."""
    found = []
    for pid in netns.processes_in(topology.namespaces):
        began = processes.start_time(pid)
        if began is not None and pid != os.getpid():
            found.append(Process("process in the lab", pid, began))
    return found


def _own_addresses() -> frozenset[IPAddress]:
    return frozenset(netns.addresses())
