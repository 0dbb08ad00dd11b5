"""How a lab shows itself: rows for programs, tables for people, progress as it goes."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TextIO

from overlay.cli.out import Output
from overlay.lab.fabric import Lab
from overlay.lab.matrix import Outcome, Result
from overlay.lab.processes import Process

_FINE: Final = "ok"


def progress_to(stream: TextIO) -> Callable[[str], None]:
    """Return what writes each step as a line at once, dim on a terminal."""

    def tell(text: str) -> None:
        stream.write(f"\x1b[2m  {text}\x1b[0m\n" if stream.isatty() else f"  {text}\n")
        stream.flush()

    return tell


def print_results(results: Sequence[Result], output: Output) -> None:
    """Print every flow, both families of a pair one below the other, and a closing line."""
    output.table(
        ("CHECK", "FROM", "TO", "IP", "RESULT", "SEEN FROM", "LARGEST", ""),
        [_row(result) for result in results],
        [result.to_json() for result in results],
    )
    if output.is_table:
        output.line(summary(results))


def print_groups(results: Sequence[Result], output: Output) -> None:
    """Print one line for each kind of flow and family."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.flow.check, result.flow.family.value), []).append(result)
    rows = [
        (
            check,
            f"IPv{version}",
            f"{sum(r.is_expected for r in group)}/{len(group)}",
            " or ".join(sorted({_result(r) for r in group})),
            _whose(group),
            " ".join(sorted({str(r.observation.largest or "-") for r in group})),
        )
        for (check, version), group in groups.items()
    ]
    output.table(
        ("CHECK", "IP", "AS EXPECTED", "RESULT", "SEEN FROM", "LARGEST"),
        rows,
        [list(row) for row in rows],
    )


def summary(results: Sequence[Result]) -> str:
    """Return one line that says how many flows are as they must be."""
    wrong = sum(not result.is_expected for result in results)
    if wrong:
        return f"{wrong} of {len(results)} flows are not as they must be"
    return f"all {len(results)} flows are as they must be"


def status(lab: Lab) -> dict[str, Any]:
    """Return what a lab is and how it does, as JSON values; the keys are stable."""
    state = lab.dir.read()
    agents = {process.role.removeprefix("overlayd "): process for process in state.processes}
    return {
        "name": lab.options.name,
        "ready": state.is_ready,
        "options": lab.options.to_json(),
        "etcd": {"endpoint": lab.topology.etcd_endpoint, **_process(agents.get("etcd"))},
        "nodes": [
            {
                "name": node.name,
                "namespace": node.namespace,
                "addresses": [str(i.ip) for i in node.interfaces.values()],
                "subnets": _subnets(lab, node.name),
                "state_dir": str(lab.dir.node(node.name)),
                "agent": _process(agents.get(node.name)),
            }
            for node in lab.topology.nodes
        ],
        "pods": [
            {
                "name": pod.name,
                "namespace": pod.namespace,
                "node": pod.node,
                "addresses": [str(a) for a in pod.addresses.values()],
            }
            for pod in (lab.pods() if state.is_ready else [])
        ],
    }


def print_status(document: dict[str, Any], output: Output) -> None:
    """Print what ``status`` returned."""
    rows = [
        (node["name"], "node", node["addresses"], node["subnets"], _running(node["agent"]))
        for node in document["nodes"]
    ]
    rows += [(pod["name"], "pod", pod["addresses"], [], "") for pod in document["pods"]]
    rows.append(("etcd", "store", [document["etcd"]["endpoint"]], [], _running(document["etcd"])))
    output.table(("NAME", "WHAT", "ADDRESS", "SUBNET", "PROCESS"), rows, document)


def is_well(document: dict[str, Any]) -> bool:
    """Return whether the lab came up and all that it started still runs."""
    parts = [document["etcd"], *(node["agent"] for node in document["nodes"])]
    return bool(document["ready"]) and all(part["running"] for part in parts)


def stderr_progress() -> Callable[[str], None]:
    """Return progress on standard error, so that ``-o json`` stays clean."""
    return progress_to(sys.stderr)


def _row(result: Result) -> tuple[object, ...]:
    flow, seen = result.flow, result.observation
    return (
        flow.check,
        flow.source.name,
        flow.target.name,
        flow.family.value,
        _result(result),
        seen.source,
        seen.largest,
        "; ".join(result.problems) or _FINE,
    )


def _result(result: Result) -> str:
    seen = result.observation
    if seen.udp is seen.tcp:
        return seen.udp.value
    if Outcome.ANSWERED not in (seen.udp, seen.tcp):
        return "no answer"
    return f"UDP {seen.udp.value}, TCP {seen.tcp.value}"


def _whose(group: Sequence[Result]) -> str:
    """Return whose address the far end saw: the sender's own or its node's."""
    seen = {
        "own address" if r.observation.source in r.flow.source.sources else "node's address"
        for r in group
        if r.observation.source is not None
    }
    return " or ".join(sorted(seen))


def _subnets(lab: Lab, node: str) -> list[str]:
    if not lab.dir.subnet_file(node).exists():
        return []
    return [str(s.network) for s in lab.subnet_files()[node].subnets.values()]


def _process(process: Process | None) -> dict[str, Any]:
    if process is None:
        return {"pid": None, "running": False}
    return {"pid": process.pid, "running": process.is_alive}


def _running(part: dict[str, Any]) -> str:
    return f"pid {part['pid']}" if part["running"] else "ended"
