"""Rows as a table: on a terminal as they come, and between two marks of a document."""

import os
import platform
import textwrap
import time
from collections.abc import Sequence
from typing import Final

from overlay.lab.chaos.fault import Fault, Row

BEGIN: Final = "<!-- chaos: begin; written by `make chaos WRITE=docs/reliability.md` -->"
END: Final = "<!-- chaos: end -->"
_NOTE: Final = 120  # characters; all of it is in the JSON
HEAD: Final = ("what happens", "p50 ms", "worst ms", "from", "lost", "flannel v0.28.9", "")


def cells(row: Row) -> tuple[str, ...]:
    """Return what stands in a row of the table."""
    fault = row.fault
    if row.skipped:
        return (fault.name, "-", "-", "-", "-", fault.flannel, f"not run: {row.skipped}")
    times = [_milliseconds(row.median_s), _milliseconds(row.worst_s)]
    remarks = [textwrap.shorten(row.note, _NOTE, placeholder=" ...")] if row.note else []
    if row.median_s is not None and not row.is_in_time:
        remarks.insert(0, f"target {_target(fault)}")
    if fault.is_lossless and row.lost:
        remarks.insert(0, "none may be lost")
    return (fault.name, *times, fault.since, str(row.lost), fault.flannel, "; ".join(remarks))


def document(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, a group below the other, with machine and date."""
    lines = [machine(), ""]
    lines += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    group = ""
    for row in rows:
        if row.fault.group != group:
            group = row.fault.group
            lines.append(f"| **{group}** |" + " |" * (len(HEAD) - 1))
        lines.append("| " + " | ".join(cells(row)) + " |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return in a sentence where and when this was measured, and how busy the machine was."""
    cpus, load = os.cpu_count(), os.getloadavg()[0]
    today = time.strftime("%d %B %Y")
    return (
        f"{today}, kernel {platform.release().partition('-')[0]}, {cpus} cores, Python "
        f"{platform.python_version()}, load {load:.1f} at the end."
    )


def _target(fault: Fault) -> str:
    median = fault.median_target_s
    before = "" if median is None else f"{1000 * median:.0f} ms, worst "
    return f"{before}{1000 * fault.target_s:.0f} ms"


def _milliseconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{1000 * seconds:.0f}"
