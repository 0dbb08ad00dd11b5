"""Processes that outlive the program that started them, and how they are ended.

A pid alone may belong to somebody else by the time it is used; with the start
time from ``/proc/PID/stat`` it names one process (proc(5)).
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay.lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Process:
    """One process; ``role`` is for people, such as ``overlayd n1``."""

    role: str
    pid: int
    start_time: int  # clock ticks after boot

    def to_json(self) -> dict[str, Any]:
        """Return the process as JSON values."""
        return {"role": self.role, "pid": self.pid, "start_time": self.start_time}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Process":
        """Return the process that ``to_json`` wrote. Raises ValueError, KeyError, TypeError."""
        role, pid, began = document["role"], document["pid"], document["start_time"]
        # Of negative numbers, kill(2) makes process groups.
        if type(role) is not str or type(pid) is not int or type(began) is not int or pid <= 0:
            msg = "a process without role, pid or start time"
            raise ValueError(msg)
        return cls(role, pid, began)

    @property
    def is_alive(self) -> bool:
        """Return whether this very process still runs."""
        return start_time(self.pid) == self.start_time


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None when it is gone.

    A process that has ended and only waits for its parent counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may hold anything; fields count from behind it.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(role: str, pid: int) -> Process:
    """Return the running process ``pid``. Raises LabError when it is gone."""
    began = start_time(pid)
    if began is None:
        msg = f"{role} ended at once"
        raise LabError(msg)
    return Process(role, pid, began)


def spawn(role: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start a program in a session of its own, its output appended to ``log``.

    ``environment`` is added to the caller's. Raises LabError.
    """
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        except OSError as exc:
            msg = f"{role}: {command[0]}: {exc.strerror}"
            raise LabError(msg) from exc
    # It is ended through its pid, by whoever takes the lab down.
    child.returncode = 0
    return identify(role, child.pid)


def stop(processes: Iterable[Process], grace_s: float = 5.0) -> None:
    """End processes: SIGTERM to all, SIGKILL to those that stay; repeating it is safe.

    Raises LabError for one that not even SIGKILL ended within ``grace_s``.
    """
    handles = _open(processes)
    try:
        for how in (signal.SIGTERM, signal.SIGKILL):
            for descriptor in handles:
                signal.pidfd_send_signal(descriptor, how)
            _await_end(handles, time.monotonic() + grace_s)
            if not handles:
                return
        left = ", ".join(f"{p.role} (pid {p.pid})" for p in handles.values())
        msg = f"not even SIGKILL ended {left}"
        raise LabError(msg)
    finally:
        for descriptor in handles:
            os.close(descriptor)


def _open(processes: Iterable[Process]) -> dict[int, Process]:
    handles = {}
    for process in processes:
        try:
            descriptor = os.pidfd_open(process.pid)
        except (ProcessLookupError, FileNotFoundError):
            # FileNotFoundError: by now a thread has that number (Linux 6.18).
            continue
        # Looked at after the descriptor is open: from here on it is one process.
        if process.is_alive:
            handles[descriptor] = process
        else:
            os.close(descriptor)
            _reap(process.pid)
    return handles


def _await_end(handles: dict[int, Process], deadline: float) -> None:
    poll = select.poll()
    for descriptor in handles:
        poll.register(descriptor, select.POLLIN)
    while handles and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            os.close(descriptor)
            _reap(handles.pop(descriptor).pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else's child
        return
