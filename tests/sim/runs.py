"""Running seeds: one, or many in several processes."""

import itertools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from typing import Final

from tests.sim.bugs import BUGS
from tests.sim.world import Outcome, World

_CHUNK: Final = 8  # seeds that one process takes at a time


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
    # Sets of strings come in an order that only this fixes, for interpreters yet to start.
    os.environ["PYTHONHASHSEED"] = "0"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        run = partial(run_seed, bug=bug)
        try:
            for start in itertools.count(first, _CHUNK * workers):
                yield from pool.map(run, range(start, start + _CHUNK * workers), chunksize=_CHUNK)
        finally:
            with suppress(Exception):
                pool.shutdown(wait=False, cancel_futures=True)
