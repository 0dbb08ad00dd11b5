"""``python -m bench [NAME ...]``: run the named benches, or all of them."""

import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from bench import cni, cold_join

BENCHES: Final[Mapping[str, Callable[[], object]]] = {
    "cni": cni.main,
    "cold-join": cold_join.main,
}


def _machine() -> str:
    cpus = Path("/proc/cpuinfo").read_text().count("processor\t")
    return f"kernel {platform.release()}, {cpus} cores, Python {platform.python_version()}"


def main() -> int:
    """Run what was named; return an exit status."""
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.stderr.write(f"bench: {unknown[0]}: there are {', '.join(BENCHES)}\n")
        return 2
    print(_machine())
    for name in names:
        print(f"\n# {name}")
        BENCHES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
