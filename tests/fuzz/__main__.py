"""``python -m tests.fuzz TARGET SECONDS``: a search guided by coverage, from the seeds on.

It ends with status 77 at the first input that breaks something, and leaves
that in ``build/fuzz/TARGET``. ``make fuzz`` installs what it needs.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["overlay"]):
    from tests.fuzz.targets import TARGETS

SEEDS = Path(__file__).parent / "seeds"


def main() -> None:
    """Run until the time is over or something breaks."""
    name, seconds = sys.argv[1:]
    found = Path("build/fuzz") / name
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            str(found),
            str(SEEDS / name),
            f"-max_total_time={seconds}",
            f"-artifact_prefix={found}/broken-",
            "-max_len=4096",
            "-timeout=10",  # seconds for one input
            "-rss_limit_mb=1024",
            "-verbosity=0",
            "-print_final_stats=1",
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


main()
