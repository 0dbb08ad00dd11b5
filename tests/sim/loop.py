"""Virtual time, and threads that take turns: one runs at a time, and the seed says which.

Each thread of the product runs as a greenlet (``Task``). Where it would block
it gives the turn back to the loop; an event of the loop gives it the next
one. Nothing else decides about order, so a seed is a whole history.
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

from greenlet import getcurrent, greenlet

_WAKE_S: Final = 0.0005  # at most, at random, from a ring of a bell to its hearing
_TICK_S: Final = 0.0001  # a timer fires a little late, never early


class KilledError(BaseException):
    """The process was killed: nothing of it may have any effect from here on."""


class Loop:
    """Runs events in the order of their times; equal times in the order of their making."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.claims = 0
        self.running = ""  # the thread whose turn it is
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0
        self.hub = getcurrent()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do ``action`` ``delay_s`` seconds from now."""
        self.at(self.now + delay_s, action)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do ``action`` at that time; what was asked for first comes first."""
        self._made += 1
        heapq.heappush(self._events, (when, self._made, action))

    def step(self, until: float) -> bool:
        """Do the next event if it is due at ``until`` or before; return whether there was one."""
        if not self._events or self._events[0][0] > until:
            self.now = max(self.now, until)
            return False
        when, _, action = heapq.heappop(self._events)
        self.now = max(self.now, when)
        self.steps += 1
        action()
        return True


class Process:
    """Threads that die together; ``is_frozen_until`` holds all of them up."""

    def __init__(self, loop: Loop, name: str, fault: Callable[[str, BaseException], None]) -> None:
        self.loop = loop
        self.name = name
        self.is_alive = True
        self.frozen_until = 0.0
        self._fault = fault
        self.tasks: list[Task] = []
        self.claim = ""  # which of its claims is under way, among all of the world

    def begin_claim(self) -> None:
        """Give what is done from here on a name of its own."""
        self.loop.claims += 1
        self.claim = f"claim {self.loop.claims}"

    def spawn(self, name: str, run: Callable[[], None]) -> "Task":
        """Start a thread; ``run`` begins a moment later."""
        task = Task(self, name, run, self._fault)
        self.tasks.append(task)
        task.resume_after(self.loop.random.uniform(0, _WAKE_S))
        return task

    def kill(self) -> None:
        """End all threads where they stand, as kill -9 does. For the loop, not for a thread."""
        self.is_alive = False
        for task in self.tasks:
            task.kill()

    def die(self) -> None:
        """End the process from one of its own threads: at once, in the middle of what it does."""
        self.is_alive = False
        self.loop.after(0.0, self.kill)
        raise KilledError

    def current(self) -> "Task":
        """Return the thread that runs. Raises KilledError in what a killed process still does."""
        if not self.is_alive:
            raise KilledError
        found = next((task for task in self.tasks if task.is_current()), None)
        assert found is not None, f"{self.name}: called from outside its threads"
        return found

    def sleep(self, delay_s: float) -> None:
        """Block the running thread."""
        task = self.current()
        task.resume_after(delay_s)
        task.suspend()


class Task:
    """One thread of a process."""

    def __init__(
        self,
        process: Process,
        name: str,
        run: Callable[[], None],
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._process = process
        self._loop = process.loop
        self.name = name
        self.turn = 0  # a wake-up is for one turn; one that comes late wakes nobody
        self._greenlet: Any = greenlet(self._main, process.loop.hub)
        self._run = run
        self._fault = fault

    def is_current(self) -> bool:
        """Return whether this thread runs now."""
        return bool(getcurrent() is self._greenlet)

    def suspend(self) -> Any:
        """Give the turn back; return what the wake-up brings."""
        value = self._loop.hub.switch()
        if not self._process.is_alive:
            raise KilledError
        return value

    def resume_after(
        self, delay_s: float, value: object = None, *, turn: int | None = None
    ) -> None:
        """Wake the thread from its next wait, or the one that it is in, or that of ``turn``."""
        chosen = self.turn if turn is None else turn
        self._loop.after(delay_s, lambda: self._resume(chosen, value))

    def kill(self) -> None:
        """End the thread where it stands."""
        if self._greenlet and not self._greenlet.dead and not self.is_current():
            self._greenlet.throw(KilledError)

    def _resume(self, turn: int, value: object) -> None:
        if turn != self.turn or not self._process.is_alive or self._greenlet.dead:
            return
        thaw_s = self._process.frozen_until - self._loop.now
        if thaw_s > 0:
            delay_s = thaw_s + self._loop.random.uniform(0, _WAKE_S)
            self._loop.after(delay_s, lambda: self._resume(turn, value))
            return
        self.turn += 1
        self._loop.running = f"{self._process.name}/{self.name}"
        self._greenlet.switch(value)

    def _main(self, _value: object) -> None:
        try:
            self._run()
        except KilledError:
            pass
        except Exception as exc:  # noqa: BLE001 - judged by whoever runs the simulation
            self._fault(f"{self._process.name}/{self.name}", exc)


class Bell:
    """``threading.Event`` in virtual time, for the threads of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_set = False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        """Return whether it was rung."""
        return self._is_set

    def set(self) -> None:
        """Ring it; those who wait hear it a moment later."""
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            task.resume_after(self._process.loop.random.uniform(0, _WAKE_S))

    def clear(self) -> None:
        """Make it silent."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, at most ``timeout`` seconds."""
        if not self._is_set:
            task = self._process.current()
            self._waiting.append(task)
            if timeout is not None:
                task.resume_after(timeout + _TICK_S)
            task.suspend()
            if task in self._waiting:
                self._waiting.remove(task)
        return self._is_set
