"""A lab in which faults are planted on ``n1``, its agent killed, and ``explain`` is asked."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from overlay.kernel.links import list_links
from overlay.kernel.rtnl import RtnlSocket
from overlay.lab import agents, netns
from overlay.lab.fabric import Lab
from overlay.lab.faults.fault import PARTNER, SUBJECT, Fault
from overlay.lab.faults.ways import pod_names
from overlay.lab.topology import POD_NETWORKS
from overlay.model.address import Family


class Scene:
    """One lab that is up, and what names in braces stand for in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        hosts = {host.name: host for host in lab.topology.nodes}
        self._host = hosts[SUBJECT]
        subnets = {n: f.subnets[Family.IPV4].network for n, f in lab.subnet_files().items()}
        far = subnets[PARTNER]
        free = (n for n in ip_network(POD_NETWORKS[Family.IPV4]).subnets(new_prefix=far.prefixlen))
        stale = next(network for network in free if network not in subnets.values())
        self.names = {
            **pod_names(lab),
            "public1": str(self._host.address(Family.IPV4)),
            "public2": str(hosts[PARTNER].address(Family.IPV4)),
            "net2": str(far),
            "gateway2": str(far.network_address),
            "mac2": netns.inside(hosts[PARTNER].namespace, _tunnel_mac),
            "stale": str(stale),
            "stale_gateway": str(stale.network_address),
        }

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Kill the agent, plant ``fault``, and put all right afterwards."""
        running = self.lab.agent(SUBJECT)
        os.kill(running.pid, signal.SIGKILL)
        try:
            for line in fault.plant:
                self.run(fault.where, *shlex.split(self.filled(line)))
            yield
        finally:
            for line in fault.undo:
                self.run(fault.where, *shlex.split(self.filled(line)))
            self.start_agent()

    def start_agent(self) -> None:
        """Start the agent anew, unless it runs, and wait until it is ready."""
        running = self.lab.agent(SUBJECT)
        if running.is_alive:
            return
        started = agents.start(self.lab.topology, self._host, self.lab.dir)
        state = self.lab.dir.read()
        kept = [p for p in state.processes if p.role != running.role]
        self.lab.dir.write(replace(state, processes=(*kept, started)))
        agents.wait_ready([self._host], {SUBJECT: started}, self.lab.dir, lambda _: None)

    def carry_out(self, mend: str, where: str = SUBJECT) -> None:
        """Do what a mend says, in a shell of the node; the lab stands for systemd and ssh."""
        for part in mend.split("; "):
            command = part.partition("  #")[0]
            if command == "systemctl restart overlayd":
                self.start_agent()
            elif command.startswith("ssh "):
                _ssh, there, _ctl, *words = command.split()
                self.carry_out(mend_of(self.ask(" ".join(words), there).stdout), there)
            else:
                self.run(where, "sh", "-c", command)

    def filled(self, text: str) -> str:
        return text.format(**self.names)

    def command(self, *words: str, where: str = SUBJECT) -> list[str]:
        """Return the words that run ``overlayctl`` on a node."""
        return self.lab.command(
            where,
            [
                *agents.program("overlayctl", "overlay.cli.main"),
                *("--socket", str(self.lab.dir.node(where) / "cni.sock")),
                *("--etcd-endpoints", self.lab.topology.etcd_endpoint),
                *words,
            ],
        )

    def ask(self, text: str, where: str = SUBJECT) -> "subprocess.CompletedProcess[str]":
        """Return what ``overlayctl`` says, a finding or not."""
        return _run(self.command(*self.filled(text).split(), where=where))

    def run(self, where: str, *words: str) -> str:
        done = _run(self.lab.command(where, words))
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start ``overlayctl``; its output is a pipe. The caller ends it."""
        # `ip netns exec` becomes the program: a signal reaches it.
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*words), text=True, **options)


def mend_of(text: str) -> str:
    """Return the command that ``explain`` says would mend it, empty where it says none."""
    said = (line.removeprefix("mend  ") for line in text.splitlines() if line.startswith("mend  "))
    return next(said, "")


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _tunnel_mac() -> str:
    with RtnlSocket() as rtnl:
        found = list_links(rtnl).get("overlay.1")
    return found.mac if found is not None else ""  # as with host-gw
