"""Running seeds: one, or many in several processes."""

import gc
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from typing import Final

from tests.sim.bugs import BUGS
from tests.sim.world import Outcome, World

_CHUNK: Final = 8  # seeds that one process takes at a time
# Allocations between two collections: a history makes little that refers to itself.
_COLLECT: Final = (50_000, 20, 100)


class _Told(logging.Handler):
    """Puts what the agents log into the trace."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.say(f"    {self._world.loop.running}: {record.getMessage()}")


def run_seed(seed: int, bug: str | None = None, *, is_traced: bool = False) -> Outcome:
    """Return what becomes of one seed; the same each time."""
    world = BUGS[bug](seed, is_traced) if bug is not None else World(seed, is_traced=is_traced)
    product = logging.getLogger("overlay")
    told, level = _Told(world), product.level
    product.propagate = False
    product.addHandler(told)
    product.setLevel(logging.INFO if is_traced else logging.CRITICAL)
    try:
        return world.run()
    finally:
        product.removeHandler(told)
        product.propagate = True
        product.setLevel(level)


def outcomes(first: int, *, bug: str | None = None, jobs: int = 0) -> Iterator[Outcome]:
    """Yield what becomes of the seeds from ``first`` on, in order, until nobody asks any more."""
    workers = jobs or os.cpu_count() or 1
    with _pool(workers) as pool:
        run = partial(run_seed, bug=bug)
        try:
            for start in itertools.count(first, _CHUNK * workers):
                yield from pool.map(run, range(start, start + _CHUNK * workers), chunksize=_CHUNK)
        finally:
            with suppress(Exception):
                pool.shutdown(wait=False, cancel_futures=True)


def outcomes_of(seeds: Sequence[int]) -> list[Outcome]:
    """Return what becomes of ``seeds``, in their order."""
    with _pool(os.cpu_count() or 1) as pool:
        return list(pool.map(run_seed, seeds))


def _pool(workers: int) -> ProcessPoolExecutor:
    # Sets of strings come in an order that only this fixes, for interpreters yet to start.
    os.environ["PYTHONHASHSEED"] = "0"
    return ProcessPoolExecutor(workers, get_context("spawn"), _set_up)


def _set_up() -> None:
    """Set up a process of the pool; it gives way to whatever has deadlines."""
    os.nice(19)
    gc.set_threshold(*_COLLECT)
