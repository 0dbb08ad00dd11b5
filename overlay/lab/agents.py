"""The real agent in every node: starting it, and waiting until it is ready."""

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from overlay.lab import netns
from overlay.lab.errors import LabError
from overlay.lab.processes import Process, spawn
from overlay.lab.state import StateDir
from overlay.lab.topology import NODE_DEVICE, Host, Topology
from overlay.model.address import Family

HEALTH_PORT: Final = 9470
_ANY: Final = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - in its own namespace
READY_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
_HTTP_TIMEOUT_S: Final = 2.0
_LOG_LINES: Final = 12


def command(
    topology: Topology, node: Host, state: StateDir, flags: Iterable[str] = ()
) -> list[str]:
    """Return the words that run the agent of ``node`` in its namespace; ``flags`` win."""
    own = state.node(node.name)
    return [
        *netns.command_prefix(node.namespace),
        *program("overlayd", "overlay.agent.program"),
        *("--etcd-endpoints", ",".join(topology.etcd_endpoints)),
        *("--iface", NODE_DEVICE),
        *("--node-name", node.name),
        *("--state-dir", str(own)),
        *("--subnet-file", str(state.subnet_file(node.name))),
        *("--cni-socket", str(own / "cni.sock")),
        # So that nodes may ask one another; nobody outside of the lab reaches it.
        *("--healthz-ip", _ANY[topology.options.families[0]]),
        *("--healthz-port", str(HEALTH_PORT)),
        *("--log-format", "text"),
        *flags,
    ]


def program(script: str, module: str) -> list[str]:
    """Return the words that run one of our programs: its script, or its module.

    The script beside the running interpreter, so that an environment that is
    not on the PATH runs its own.
    """
    beside = Path(sys.executable).parent / script
    return [str(beside)] if beside.exists() else [sys.executable, "-m", module]


def start(topology: Topology, node: Host, state: StateDir, flags: Iterable[str] = ()) -> Process:
    """Start one node's agent; its output goes to the node's log. Raises LabError."""
    environment = {"PYTHONUNBUFFERED": "1"}
    return spawn(
        f"overlayd {node.name}",
        command(topology, node, state, flags),
        state.log(node.name),
        environment,
    )


def wait_ready(
    nodes: Iterable[Host],
    processes: Mapping[str, Process],
    state: StateDir,
    progress: Callable[[str], None],
    timeout_s: float = READY_TIMEOUT_S,
) -> None:
    """Wait until every agent's ``/readyz`` answers 200; ``processes`` is by node name.

    Raises LabError for an agent that ended or is not ready in time, with the
    reason that it gives and the end of its log.
    """
    by_namespace = {node.namespace: node for node in nodes}
    deadline = time.monotonic() + timeout_s
    told: dict[str, str] = {}
    while by_namespace:
        answers = netns.inside_each(by_namespace, lambda _: readiness())
        for namespace, reason in answers.items():
            node = by_namespace[namespace].name
            if reason is None:
                del by_namespace[namespace]
                progress(f"{node} is ready")
                continue
            if not processes[node].is_alive:
                msg = f"the agent of {node} ended: {log_tail(state, node)}"
                raise LabError(msg)
            if told.get(node) != reason:
                told[node] = reason
                progress(f"{node}: {reason}")
            if time.monotonic() > deadline:
                msg = (
                    f"the agent of {node} is not ready after {timeout_s:.0f} s: {reason}\n"
                    f"{log_tail(state, node)}"
                )
                raise LabError(msg)
        if by_namespace:
            time.sleep(_POLL_S)


def readiness() -> str | None:
    """Return why the agent in the thread's namespace is not ready; None when it is."""
    connection = http.client.HTTPConnection("127.0.0.1", HEALTH_PORT, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "does not answer yet"
    finally:
        connection.close()
    return None if answer.status == http.client.OK else _reason(body)


def log_tail(state: StateDir, node: str) -> str:
    """Return the last lines that a node's agent logged."""
    try:
        lines = state.log(node).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(lines[-_LOG_LINES:]) or "(empty log)"


def _reason(body: str) -> str:
    """Return the reason in a body that may be JSON or plain text, in one line."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict):
        for key in ("reasons", "reason", "waiting", "state"):
            value = document.get(key)
            if value:
                return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(body.split()) or "not ready"
