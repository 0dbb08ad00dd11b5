"""Printing what the checks said."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from overlay.cli.doctor.runner import Report
from overlay.cli.doctor.verdicts import Finding, Fine
from overlay.cli.out import Output, printable


def print_reports(reports: Sequence[Report], out: Output, *, is_whole: bool) -> None:
    """Print the reports; for people only what is not fine, unless ``is_whole``."""
    if not out.is_table:
        out.document(document(reports))
        return
    width = max((len(report.check.name) for report in reports), default=0)
    for report in reports:
        if report.status != "fine" or is_whole:
            for line in _lines(report, is_whole=is_whole):
                out.line(f"{line[0]:<{width}}  {line[1]:<7}  {printable(line[2])}".rstrip())
    out.line(_summary(reports))


def document(reports: Iterable[Report]) -> dict[str, Any]:
    """Return the reports as JSON values; docs/cli.md has the form."""
    return {
        "checks": [
            {
                "check": report.check.name,
                "looks_at": report.check.looks_at,
                "status": report.status,
                "findings": [
                    {
                        "severity": found.severity.value,
                        "reason": found.reason,
                        "remedy": found.remedy,
                    }
                    for found in report.findings
                ],
                "seen": [v.seen for v in report.verdicts if isinstance(v, Fine) and v.seen],
                "unknown": [v.reason for v in report.verdicts if not isinstance(v, Fine | Finding)],
            }
            for report in reports
        ]
    }


class Progress:
    """Says on a terminal what is still waited for, in one line that is gone at the end."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()

    def __call__(self, names: Sequence[str]) -> None:
        """Show ``names``; none clears the line."""
        if self._is_shown:
            text = f"waiting for {', '.join(names)}" if names else ""
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def _lines(report: Report, *, is_whole: bool) -> Iterable[tuple[str, str, str]]:
    name = report.check.name
    for verdict in report.verdicts:
        if isinstance(verdict, Finding):
            yield name, verdict.severity.value, verdict.reason
            yield "", "mend", verdict.remedy
        elif isinstance(verdict, Fine):
            if is_whole:
                yield name, "fine", verdict.seen
        else:
            yield name, "unknown", verdict.reason


def _summary(reports: Sequence[Report]) -> str:
    counts = {
        status: sum(report.status == status for report in reports)
        for status in ("fine", "finding", "unknown")
    }
    found = sum(len(report.findings) for report in reports)
    return (
        f"{len(reports)} checks: {counts['fine']} fine, {counts['unknown']} could not be made, "
        f"{found} {'finding' if found == 1 else 'findings'}"
    )
