"""One run: an etcd of three members, processes of clients, and faults drawn from a seed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from overlay.lab.etcd import EmbeddedEtcd, free_port
from overlay.store.etcd_config import parse_endpoint
from tests.etcd.history_client import Task
from tests.etcd.history_watch import HistoryWatch
from tests.etcd.proxy import LossyProxy
from tests.history.record import Operation, read_history
from tests.history.revisions import Change

_ROOT: Final = Path(__file__).resolve().parents[2]
_FAULTS: Final = ("lose an answer", "kill clients", "pause clients", "kill a member", "kill all")
_WEIGHTS: Final = (12, 3, 3, 2, 1)
_END_S: Final = 60.0  # for the clients' last calls, and for the watch to hear of the last change


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's size: ``processes`` of ``clients`` each, for ``length_s``."""

    seed: int
    length_s: float
    processes: int = 4
    clients: int = 2
    members: int = 3
    ttl_s: int = 2
    pace_s: float = 0.05
    plant: str = ""
    has_faults: bool = True


@dataclass(slots=True)
class Record:
    """What a run left behind."""

    operations: list[Operation]
    changes: list[Change]
    faults: Counter[str]
    files: list[Path]

    def __str__(self) -> str:
        kinds = Counter(f"{o.kind} {o.outcome}" for o in self.operations)
        counts = [f"{count} {name}" for name, count in sorted(kinds.items())]
        counts += [f"{count} x {name}" for name, count in sorted(self.faults.items())]
        return f"{len(self.operations)} operations, {len(self.changes)} changes: " + ", ".join(
            counts
        )


def run(plan: Plan, folder: Path) -> Record:
    """Run ``plan`` and return what was recorded; files stay in ``folder``."""
    prefix = "/history"
    faults: Counter[str] = Counter()
    with _cluster(plan.members, folder) as members, contextlib.ExitStack() as stack:
        ports = [parse_endpoint(member.endpoint).port for member in members]
        proxies = [stack.enter_context(LossyProxy(port)) for port in ports]
        watch = stack.enter_context(HistoryWatch([member.endpoint for member in members], prefix))
        until_s = time.monotonic() + plan.length_s
        processes = [
            stack.enter_context(_Process(plan, number, proxies, prefix, until_s, folder))
            for number in range(plan.processes)
        ]
        chaos = _Chaos(plan, members, proxies, processes, faults)
        if plan.has_faults:
            chaos.run(until_s)
        for process in processes:
            process.join(until_s + _END_S)
        faults["answer lost"] = sum(proxy.lost for proxy in proxies)
        changes = watch.all()
    files = sorted(folder.glob("*.jsonl"))
    return Record(read_history(files), changes, faults, files)


@contextlib.contextmanager
def _cluster(count: int, folder: Path) -> Iterator[list[EmbeddedEtcd]]:
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(count)]
    everybody = ",".join(f"m{number}={url}" for number, url in enumerate(peers))
    members = [
        EmbeddedEtcd(
            folder / f"m{number}",
            peer_url=url,
            # Of a flag that stands twice, etcd takes the last.
            arguments=("--name", f"m{number}", "--initial-cluster", everybody),
        )
        for number, url in enumerate(peers)
    ]
    try:
        _start(members)
        yield members
    finally:
        for member in members:
            member.kill()


def _start(members: Sequence[EmbeddedEtcd]) -> None:
    """Start members together: one alone waits for the others."""
    with ThreadPoolExecutor(len(members)) as pool:
        list(pool.map(EmbeddedEtcd.start, members))


class _Process:
    """A process of clients that may be killed, stopped and started again."""

    def __init__(
        self,
        plan: Plan,
        number: int,
        proxies: Sequence[LossyProxy],
        prefix: str,
        until_s: float,
        folder: Path,
    ) -> None:
        first = number * plan.clients + 1
        self._task = Task(
            # Each begins with another member.
            endpoints=tuple(
                f"http://127.0.0.1:{proxies[(number + i) % len(proxies)].port}"
                for i in range(len(proxies))
            ),
            prefix=prefix,
            clients=tuple(range(first, first + plan.clients)),
            seed=plan.seed,
            run=0,
            until_s=until_s,
            ttl_s=plan.ttl_s,
            pace_s=plan.pace_s,
            folder=str(folder),
            plant=plan.plant,
        )
        self._log = folder / f"process-{number}.log"
        self._runs = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._runs += 1
        task = replace(self._task, run=self._runs)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.etcd.history_client", task.to_json()],
                cwd=_ROOT,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def join(self, deadline_s: float) -> None:
        """Wait for its end. Raises AssertionError with its words when it did not end well."""
        assert self._process is not None
        status = self._process.wait(max(1.0, deadline_s - time.monotonic()))
        assert status == 0, f"{self._log}: {self._log.read_text()[-2000:]}"


class _Chaos:
    """Does harm, by the seed, until the end; leaves everything running."""

    def __init__(
        self,
        plan: Plan,
        members: Sequence[EmbeddedEtcd],
        proxies: Sequence[LossyProxy],
        processes: Sequence[_Process],
        faults: Counter[str],
    ) -> None:
        self._chance = random.Random(plan.seed)
        self._ttl_s = plan.ttl_s
        self._members = members
        self._proxies = proxies
        self._processes = processes
        self._faults = faults
        self._due: list[tuple[float, Callable[[], None]]] = []  # what mends the harm, and when

    def run(self, until_s: float) -> None:
        try:
            while time.monotonic() < until_s - 1:
                (fault,) = self._chance.choices(_FAULTS, _WEIGHTS)
                self._do(fault)
                self._faults[fault] += 1
                time.sleep(self._chance.uniform(0.05, 0.5))
                self._mend(time.monotonic())
        finally:
            self._mend(float("inf"))
            _start(self._members)

    def _do(self, fault: str) -> None:
        process, member = self._chance.choice(self._processes), self._chance.choice(self._members)
        if fault == "lose an answer":
            self._chance.choice(self._proxies).lose_an_answer()
        elif fault == "kill clients":
            process.kill()
            process.start()
        elif fault == "pause clients":
            process.signal(signal.SIGSTOP)
            pause_s = self._ttl_s * self._chance.uniform(0.2, 2.0)
            self._later(pause_s, lambda: process.signal(signal.SIGCONT))
        elif fault == "kill a member":
            member.kill()
            self._later(self._chance.uniform(0.3, 2.0), lambda: _start(self._members))
        else:
            for each in self._members:
                each.kill()
            _start(self._members)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + delay_s, action))

    def _mend(self, now_s: float) -> None:
        due = [entry for entry in self._due if entry[0] <= now_s]
        self._due = [entry for entry in self._due if entry[0] > now_s]
        for _, action in due:
            action()
