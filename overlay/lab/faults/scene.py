"""The lab that faults are planted in, and what is done there: plant, ask, undo."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from overlay.lab import agents, netns
from overlay.lab.errors import LabError
from overlay.lab.fabric import Lab
from overlay.lab.faults.fault import EVENTS, PARTNER, SUBJECT, SUBNETS, Fault, Row
from overlay.lab.faults.ways import pod_names
from overlay.lab.topology import POD_NETWORKS, LabOptions
from overlay.model.address import Family
from overlay.model.conflist import conflist

_TIMEOUT_S: Final = 60.0
NAMED_S: Final = 30.0  # a connection that went silent is noticed within 8 s
_POLL_S: Final = 0.2


def options(name: str, families: Sequence[Family] = (Family.IPV4,)) -> LabOptions:
    """Return the lab that the faults are planted in."""
    return LabOptions(name=name, nodes=3, pods=1, families=tuple(families))


class Scene:
    """One lab that is up; faults are planted one after the other, and undone each time."""

    def __init__(self, lab: Lab, named_s: float = NAMED_S) -> None:
        self._lab = lab
        self._named_s = named_s
        self._host = next(host for host in lab.topology.nodes if host.name == SUBJECT)
        self._root = lab.dir.path / "root"
        configuration = self._root / "etc/cni/net.d/10-overlay.conflist"
        configuration.parent.mkdir(parents=True)
        configuration.write_text(json.dumps(conflist("kubernetes")))
        self._names = names(lab, self._root)

    def ask(self, words: str) -> str:
        """Return what ``overlayctl`` says on the node, a finding or not."""
        command = [
            *agents.program("overlayctl", "overlay.cli.main"),
            *("--socket", str(self._lab.dir.node(SUBJECT) / "cni.sock")),
            *("--etcd-endpoints", self._lab.topology.etcd_endpoint),
            *shlex.split(words.format(**self._names)),
        ]
        done = self._run(self._lab.command(SUBJECT, command))
        return done.stdout + done.stderr

    def row(self, fault: Fault) -> Row:
        """Plant a fault, ask until it is named, undo it, and see that it no longer is.

        Raises LabError when it cannot be planted or undone.
        """
        expected = fault.expected.format(**self._names)
        self._prepare(fault)
        known = _lines_with(self.ask(fault.asked), expected)
        if known and not fault.heals:
            return Row(fault, "", "", "named before it was planted")
        if fault.is_agent_away:
            self._kill_agent()
        try:
            for line in fault.plant:
                self._do(fault.where, line)
            said = self._ask_until(
                fault, lambda text: len(_lines_with(text, expected)) > len(known)
            )
        finally:
            for line in fault.undo:
                self._do(fault.where, line)
            if fault.is_agent_away:
                self._start_agent()
        found = _lines_with(said, expected)
        if len(found) <= len(known):
            return Row(fault, "", "", f"not named: {said.strip()}")
        if fault.heals:
            # Without the time that events begin with.
            return Row(fault, found[-1].partition(" ")[2], "none: it has healed")
        after = self._ask_until(fault, lambda text: not _lines_with(text, expected))
        problem = "still named when it was undone" if _lines_with(after, expected) else ""
        remedy = _remedy(said, expected)
        line, remedy = (text.replace(str(self._root), "") for text in (found[0], remedy))
        return Row(fault, line, remedy, problem)

    def _prepare(self, fault: Fault) -> None:
        """Do what is done ``before``, and wait until the agent has told of it."""
        learned = fault.learned.format(**self._names)
        known = len(_lines_with(self.ask(EVENTS), learned)) if learned else 0
        for line in fault.before:
            self._do(fault.where, line)
        deadline = time.monotonic() + self._named_s
        while learned and len(_lines_with(self.ask(EVENTS), learned)) <= known:
            if time.monotonic() > deadline:
                msg = f"{fault.name}: no event tells {learned!r}"
                raise LabError(msg)
            time.sleep(_POLL_S)

    def _ask_until(self, fault: Fault, is_enough: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + self._named_s
        while True:
            text = self.ask(fault.asked)
            if is_enough(text) or time.monotonic() > deadline:
                return text
            time.sleep(_POLL_S)

    def _do(self, where: str, line: str) -> None:
        words = shlex.split(line.format(**self._names), posix=not line.startswith("etcd put"))
        if words[0] == "etcd":
            self._do_etcd(words[1:])
            return
        if words[0] == "agent":
            freeze = signal.SIGSTOP if words[1] == "freeze" else signal.SIGCONT
            os.kill(self._lab.agent(SUBJECT).pid, freeze)
            return
        done = self._run(self._lab.command(where, words))
        if done.returncode != 0:
            msg = f"`{line}` on {where}: {done.stderr.strip()}"
            raise LabError(msg)

    def _do_etcd(self, words: list[str]) -> None:
        match words:
            case ["put", key, value]:
                self._lab.etcd.gateway.put({key: value.encode()})
            case ["del", *keys]:
                self._lab.etcd.gateway.delete(keys)
            case ["end", key]:
                found = self._lab.etcd.gateway.under(key)
                self._lab.etcd.gateway.revoke(found[""].lease_id)
            case ["compact"]:
                self._lab.etcd.gateway.compact()
            case ["stop"]:
                self._lab.etcd.stop()
            case ["start"]:
                self._lab.etcd.start()
            case _:
                msg = f"etcd {' '.join(words)}: no such command of a fault"
                raise LabError(msg)

    def _kill_agent(self) -> None:
        running = self._lab.agent(SUBJECT)
        if running.is_alive:
            os.kill(running.pid, signal.SIGKILL)

    def _start_agent(self) -> None:
        state, place = self._lab.dir.read(), self._lab.dir
        started = agents.start(self._lab.topology, self._host, place)
        kept = [process for process in state.processes if process.role != started.role]
        place.write(replace(state, processes=(*kept, started)))
        agents.wait_ready([self._host], {SUBJECT: started}, place, lambda _: None)

    def _run(self, command: list[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )


def names(lab: Lab, root: Path) -> Mapping[str, str]:
    """Return what the braces of faults stand for in this lab. Raises LabError."""
    hosts = {host.name: host for host in lab.topology.nodes}
    subnets = {n: f.subnets[Family.IPV4].network for n, f in lab.subnet_files().items()}
    taken = set(subnets.values())
    own, far = subnets[SUBJECT], subnets[PARTNER]
    free = (n for n in ip_network(POD_NETWORKS[Family.IPV4]).subnets(new_prefix=own.prefixlen))
    stale = next(network for network in free if network not in taken)
    return {
        "root": str(root),
        "state": str(lab.dir.node(SUBJECT)),
        "public1": str(hosts[SUBJECT].address(Family.IPV4)),
        "public2": str(hosts[PARTNER].address(Family.IPV4)),
        "partner": hosts[PARTNER].port,
        "gateway1": str(own.network_address),
        "inner1": str(own[1]),
        "key1": str(own).replace("/", "-"),
        "keys": " ".join(f"{SUBNETS}/{str(n).replace('/', '-')}" for n in subnets.values()),
        "net1": str(own),
        "net2": str(far),
        "gateway2": str(far.network_address),
        "mac2": netns.inside(hosts[PARTNER].namespace, _tunnel_mac),
        "stale": str(stale),
        "stale_gateway": str(stale.network_address),
        "stale_inner": str(stale[1]),
        "stale_key": str(stale).replace("/", "-"),
        **pod_names(lab),
        **second_names(lab),
    }


def second_names(lab: Lab) -> dict[str, str]:
    """Return what braces of the second family stand for; none in a lab of IPv4 alone."""
    if Family.IPV6 not in lab.topology.options.families:
        return {}
    partner = next(host for host in lab.topology.nodes if host.name == PARTNER)
    far = lab.subnet_files()[PARTNER].subnets[Family.IPV6].network
    return {
        "net2_6": str(far),
        "gateway2_6": str(far.network_address),
        "public2_6": str(partner.address(Family.IPV6)),
        "mac2_6": netns.inside(partner.namespace, lambda: _tunnel_mac("overlay-v6.1")),
    }


def _tunnel_mac(device: str = "overlay.1") -> str:
    shown = subprocess.run(
        ["ip", "-json", "link", "show", device], capture_output=True, check=True
    ).stdout
    return str(json.loads(shown)[0]["address"])


def _lines_with(text: str, expected: str) -> list[str]:
    return [line for line in text.splitlines() if expected in line]


def _remedy(text: str, expected: str) -> str:
    """Return the command that the line behind the one with ``expected`` names, if it does."""
    lines = text.splitlines()
    place = next(number for number, line in enumerate(lines) if expected in line)
    words = lines[place + 1].split(maxsplit=1) if place + 1 < len(lines) else []
    return words[1] if words[:1] == ["mend"] else ""
