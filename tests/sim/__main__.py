"""``python -m tests.sim``: replay a seed, or run many and print what they found.

python -m tests.sim --seed 17            # one history, with its trace
python -m tests.sim --steps 1000000      # as many seeds as that takes
"""

import argparse
import os
import sys
import time

from tests.sim.bugs import BUGS
from tests.sim.runs import outcomes, run_seed


def main() -> int:
    """Return 0 when nothing was found, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--first", type=int, default=0, help="first seed of many")
    parser.add_argument("--steps", type=int, default=100_000, help="stop after so many steps")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 for one a core")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant this bug")
    args = parser.parse_args()
    if args.seed is not None:
        _fix_hashes()
        return _replay(args.seed, args.bug)
    started = time.monotonic()
    steps = seeds = doubles = 0
    unknowing_s = 0.0
    broken: list[int] = []
    for outcome in outcomes(args.first, bug=args.bug, jobs=args.jobs):
        steps += outcome.steps
        seeds += 1
        doubles += outcome.double_owners
        unknowing_s += outcome.unknowing_s
        if outcome.violations:
            broken.append(outcome.seed)
            print(f"seed {outcome.seed}: {outcome.violations[0]}", flush=True)
        if steps >= args.steps:
            break
    print(f"{steps} steps in {seeds} seeds, {time.monotonic() - started:.0f} s: "
          f"{doubles} double owners, {len(broken)} seeds with a violation; nodes that could not "
          f"know shared a subnet for {unknowing_s:.0f} s")  # fmt: skip
    return 1 if broken else 0


def _fix_hashes() -> None:
    """Start anew where sets of strings come in another order each time."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])


def _replay(seed: int, bug: str | None) -> int:
    outcome = run_seed(seed, bug, is_traced=True)
    for line in (*outcome.trace, *outcome.violations):
        print(line)
    print(f"seed {seed}: {outcome.steps} steps, {len(outcome.violations)} violations")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
