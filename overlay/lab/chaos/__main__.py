"""``python -m overlay.lab.chaos [NAME...]``: plant faults in a lab, print what became of them."""

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from overlay.cli.out import Output
from overlay.lab import report, signals
from overlay.lab.chaos import runner, table
from overlay.lab.chaos.fault import Fault, Row
from overlay.lab.document import write_between
from overlay.lab.errors import LabUsageError
from overlay.model.errors import OverlayError

_INTERRUPTED: Final = 130
_OUTAGE_S: Final = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; return 0 when all was repaired in time and nothing lost that may not be."""
    args = _parser().parse_args(argv)
    tell = report.stderr_progress()
    rows: list[Row] = []
    began = time.monotonic()
    try:
        faults = chosen(args.names)
        if args.list:
            sys.stdout.write("".join(f"{fault.group}: {fault.name}\n" for fault in faults))
            return 0
        tell(f"{len(faults)} faults; --seed {args.seed} repeats the moments of this run")
        with (
            signals.as_exceptions(),
            runner.Stages(f"chaos-{os.getpid()}", args.outage, args.seed, tell) as stages,
        ):
            rows += runner.run(stages, faults, lambda fault: args.rounds or fault.rounds, tell)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OverlayError as exc:
        sys.stderr.write(f"chaos: {exc}\n")
        return exc.exit_code
    finally:
        _show(rows, args.json)
    tell(f"took {time.monotonic() - began:.0f} s")
    if args.write is not None:
        write_between(args.write, table.BEGIN, table.END, table.document(rows))
    return 0 if all(row.skipped or (row.is_kept and row.is_in_time) for row in rows) else 1


def chosen(names: Sequence[str]) -> list[Fault]:
    """Return the faults whose group is named or whose name contains a name; all for no names.

    Raises LabUsageError for a name that means nothing.
    """
    faults = runner.all_faults()
    groups = {fault.group for fault in faults}
    meant: set[str] = set()
    for name in names:
        found = [f.name for f in faults if (f.group == name if name in groups else name in f.name)]
        if not found:
            msg = f"no fault or group is called {name!r}; --list shows them"
            raise LabUsageError(msg)
        meant.update(found)
    return [fault for fault in faults if not names or fault.name in meant]


def _show(rows: Sequence[Row], file: Path | None) -> None:
    """Show what was done, also of a run that was cut short."""
    if not rows:
        return
    Output("table").table(table.HEAD, [table.cells(row) for row in rows], [])
    sys.stdout.write(table.machine() + "\n")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": table.machine(), "rows": [row.to_json() for row in rows]}
        file.write_text(json.dumps(document, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m overlay.lab.chaos",
        description="Plant faults in a lab that carries traffic; print repair times and losses.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults, or groups (all)")
    parser.add_argument("--list", action="store_true", help="show what there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="replace the table between its marks there"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="plant each so often")
    parser.add_argument(
        "--outage", type=float, default=_OUTAGE_S, metavar="S", help="how long etcd is away (30)"
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(1 << 32), help="of the random moments"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
