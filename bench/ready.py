"""Waiting until agents are ready, by what they leave in the machine."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench.agents import Running
from bench.bed import Node
from bench.entries import KernelEntries
from overlay.lab import netns
from overlay.lab.pods import read_subnet_file
from overlay.model.address import Family
from overlay.model.errors import OverlayError

_LIMIT_S: Final = 30.0
_POLL_S: Final = 0.01


class NotReadyError(OverlayError):
    """An agent ended, or was not ready in time; the text has the end of its log."""


def await_subnet(node: Node, running: Running) -> None:
    """Wait until an agent wrote its subnet file. Raises NotReadyError."""
    _await(running, (node.place / "subnet.env").exists)


def await_routes(nodes: Sequence[Node], running: Sequence[Running]) -> None:
    """Wait until every node has routes to the others' subnets. Raises NotReadyError."""
    for node, agent in zip(nodes, running, strict=True):
        await_subnet(node, agent)
    subnets = {}
    for node in nodes:
        network = read_subnet_file(node.place / "subnet.env").subnets[Family.IPV4].network
        gateway = network.network_address.packed
        subnets[node.namespace] = gateway
    for node, agent in zip(nodes, running, strict=True):
        wanted = {
            ("route", gateway + b"\x18"): gateway
            for name, gateway in subnets.items()
            if name != node.namespace
        }
        with netns.inside(node.namespace, KernelEntries) as entries:
            entries.expect(wanted)
            entries.wait(_LIMIT_S, functools.partial(_is_alive, agent))


def _is_alive(running: Running) -> bool:
    return running.is_alive


def _await(running: Running, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if not running.is_alive or time.monotonic() > deadline:
            why = f"is not ready after {_LIMIT_S:.0f} s" if running.is_alive else "ended"
            raise NotReadyError(f"the agent {why}: {running.log_tail}")
        time.sleep(_POLL_S)
