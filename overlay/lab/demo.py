"""``python -m overlay.lab.demo``: a fabric comes up, is tested and measured, and goes."""

import os
import sys
import time
from typing import Final

from overlay.cli.out import Output
from overlay.lab import report, signals, throughput
from overlay.lab.fabric import Lab, running
from overlay.lab.topology import LabOptions
from overlay.model.address import FAMILIES
from overlay.model.errors import OverlayError

_INTERRUPTED: Final = 130


def main() -> int:
    """Run the demo; return 0 when every flow is as it must be. Always cleans up."""
    options = LabOptions(name=f"demo-{os.getpid()}", nodes=3, pods=2, families=FAMILIES)
    began = time.monotonic()
    try:
        with signals.as_exceptions():
            _say("Three nodes, two pods each: VXLAN, IPv4 and IPv6, egress island")
            with running(options, _step) as lab:
                is_fine = _show(lab)
                _say("Down")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OverlayError as exc:
        sys.stderr.write(f"demo: {exc}\n")
        return exc.exit_code
    _say(f"Done in {time.monotonic() - began:.0f} s; nothing is left")
    return 0 if is_fine else 1


def _show(lab: Lab) -> bool:
    output = Output("table")
    report.print_status(report.status(lab), output)
    _say("Every flow: who the far end saw, and the largest packet that passes")
    results = lab.test()
    report.print_results(results, output)
    _say("In short")
    report.print_groups(results, output)
    _say("Throughput against the underlay")
    try:
        _step(str(throughput.measure(lab, progress=_step)))
    except throughput.NoIperfError as exc:
        _step(str(exc))
    return all(result.is_expected for result in results)


def _say(text: str) -> None:
    bold = f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text
    sys.stdout.write(f"\n{bold}\n")
    sys.stdout.flush()


def _step(text: str) -> None:
    report.progress_to(sys.stdout)(text)


if __name__ == "__main__":
    sys.exit(main())
