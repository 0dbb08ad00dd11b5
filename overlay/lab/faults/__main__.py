"""``python -m overlay.lab.faults [NAME...]``: plant faults in a lab, print who names each."""

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from overlay.cli.out import Output
from overlay.lab import report, signals
from overlay.lab.document import write_between
from overlay.lab.errors import LabUsageError
from overlay.lab.fabric import running
from overlay.lab.faults.conditions import BASELINE, HOST, LAST
from overlay.lab.faults.fault import Fault, Row
from overlay.lab.faults.scene import Scene, options
from overlay.lab.faults.second_family import SECOND_FAMILY
from overlay.lab.faults.ways import WAYS
from overlay.model.address import FAMILIES, Family
from overlay.model.errors import OverlayError

FAULTS: Final[tuple[Fault, ...]] = (*BASELINE, *HOST, *WAYS, LAST, *SECOND_FAMILY)
BEGIN: Final = "<!-- faults: begin; written by `make faults WRITE=docs/doctor.md` -->"
END: Final = "<!-- faults: end -->"
_INTERRUPTED: Final = 130
_MOST: Final = 160  # characters of what is said; a list of changes may be long


def main(argv: Sequence[str] | None = None) -> int:
    """Run the table; return 0 when every fault was named, and only while it was there."""
    parser = argparse.ArgumentParser(
        prog="python -m overlay.lab.faults",
        description="Plant faults in a lab; print which command names each, and its remedy.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a fault's name (all)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="replace the table between its marks there"
    )
    args = parser.parse_args(argv)
    tell = report.stderr_progress()
    rows: list[Row] = []
    began = time.monotonic()
    try:
        faults = chosen(args.names)
        with signals.as_exceptions():
            for families, some in _by_lab(faults):
                with running(options(f"faults-{os.getpid()}", families), tell) as lab:
                    scene = Scene(lab)
                    for fault in some:
                        rows.append(scene.row(fault))
                        found = rows[-1].problem or "named"
                        tell(f"{len(rows)}/{len(faults)} {fault.name}: {found}")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OverlayError as exc:
        sys.stderr.write(f"faults: {exc}\n")
        return exc.exit_code
    finally:
        print_rows(rows, Output("table"))
    if args.write is not None:
        write_between(args.write, BEGIN, END, document(rows))
    tell(f"took {time.monotonic() - began:.0f} s")
    return 0 if all(row.is_named for row in rows) else 1


def _by_lab(faults: Sequence[Fault]) -> Iterator[tuple[Sequence[Family], Sequence[Fault]]]:
    """Yield the labs that faults need, by their families, with the faults of each."""
    dual = [fault for fault in faults if fault in SECOND_FAMILY]
    if plain := [fault for fault in faults if fault not in SECOND_FAMILY]:
        yield (Family.IPV4,), plain
    if dual:
        yield FAMILIES, dual


def chosen(names: Sequence[str]) -> list[Fault]:
    """Return the faults whose name contains one of ``names``; all for none.

    Raises LabUsageError for a name that means nothing.
    """
    for name in names:
        if not any(name in fault.name for fault in FAULTS):
            msg = f"no fault is called {name!r}; there are {', '.join(f.name for f in FAULTS)}"
            raise LabUsageError(msg)
    return [f for f in FAULTS if not names or any(name in f.name for name in names)]


def document(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    lines = ["| fault | found by | it says | remedy |", "|---|---|---|---|"]
    for row in rows:
        said = " ".join(row.line.split()) or row.problem
        cells = [row.fault.name, _who(row), textwrap.shorten(said, _MOST), _code(row.remedy)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return text if not text or text.startswith("none") else f"`{text}`"


def print_rows(rows: Sequence[Row], out: Output) -> None:
    """Print the table of what was planted, and how many were named."""
    if not rows:
        return
    out.table(
        ("FAULT", "FOUND BY", "IT SAYS", "REMEDY"),
        [
            (row.fault.name, _who(row), " ".join(row.line.split()) or row.problem, row.remedy)
            for row in rows
        ],
        [],
    )
    out.line(f"{sum(row.is_named for row in rows)} of {len(rows)} faults were named")


def _who(row: Row) -> str:
    """Return the command that was asked, with its check where it names one."""
    command = row.fault.asked.split()[0]
    if not row.is_named:
        return "NOBODY"
    return f"{command}: {row.line.split()[0]}" if command == "doctor" else command


if __name__ == "__main__":
    sys.exit(main())
