"""A program: clients that claim, renew, release, forget and look, and write down what they did.

Each client is a node of its own with one real ``EtcdLeaseStore``. What it does
depends on the seed alone, as far as etcd's answers do. It may be killed or
stopped at any moment: what has begun is on disk by then.
"""

import json
import os
import random
import sys
import threading
import time
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self

from etcd3.transactions import Create, Mod

from overlay.model.address import Family
from overlay.model.lease import Lease, LeaseAttributes, Owner
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.store.base import (
    Claim,
    DuplicateNodeError,
    LeaseLostError,
    NoFreeSubnetError,
    StoreError,
)
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig
from tests.history.record import Holding, Kind, Operation, begin_line, end_line

# Four networks that half of the clients lease whole and the others by halves.
NETWORK: Final = '"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0"'
CONFIGS: Final = (
    f'{{{NETWORK}, "SubnetLen": 24, "SubnetMax": "10.244.4.0"}}',
    f'{{{NETWORK}, "SubnetLen": 25, "SubnetMax": "10.244.4.128"}}',
)
_PER_RUN: Final = 1_000_000  # numbers of operations that one run of a process may use


@dataclass(frozen=True, slots=True)
class Task:
    """What a process is to do; ``run`` counts its restarts, ``until_s`` is CLOCK_MONOTONIC."""

    endpoints: tuple[str, ...]
    prefix: str
    clients: tuple[int, ...]
    seed: int
    run: int
    until_s: float
    ttl_s: int
    pace_s: float
    folder: str
    plant: str = ""

    def to_json(self) -> str:
        """Return the form that ``from_json`` reads."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the task that ``to_json`` wrote."""
        values = json.loads(text)
        lists = {name: tuple(values[name]) for name in ("endpoints", "clients")}
        return cls(**{**values, **lists})


class Client:
    """One node: what it holds, and the file of what it did."""

    def __init__(self, number: int, task: Task) -> None:
        self._name = f"c{number}"
        self._number = number
        self._task = task
        self._chance = random.Random(f"{task.seed}/{number}/{task.run}")
        self._store = EtcdLeaseStore(
            EtcdConfig(task.endpoints, task.prefix, timeout_s=3.0), choose=self._chance.randrange
        )
        _plant(self._store, task.plant)
        self._config = parse_network_config(CONFIGS[number % len(CONFIGS)])
        path = Path(task.folder) / f"{self._name}.jsonl"
        # One write a line, at the end of the file: whole, or not there.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._next = task.run * _PER_RUN + number * _PER_RUN // 100
        self._held: tuple[Lease, int] | None = None  # and the operation that it came by

    def run(self) -> None:
        """Work until the task's end."""
        while time.monotonic() < self._task.until_s:
            self._step()
            time.sleep(self._chance.expovariate(1 / self._task.pace_s))
        self._store.close()

    def _step(self) -> None:
        dice = self._chance.random()
        if dice < 0.25:
            self._view()
        elif self._held is None:
            self._acquire()
        elif dice < 0.55:
            self._renew(*self._held)
        elif dice < 0.68:
            self._release(*self._held)
        elif dice < 0.9:
            # Away past the end of its lease; then it goes on as if nothing had been.
            time.sleep(self._task.ttl_s * self._chance.uniform(0.8, 2.0))
        else:
            self._acquire()

    def _acquire(self) -> None:
        begun = self._begin("acquire")
        claim = Claim(
            NodeIdentity(self._name, self._name),
            self._config,
            self._attributes(begun),
            self._task.ttl_s,
        )
        try:
            lease = self._store.acquire(claim)
        except (NoFreeSubnetError, DuplicateNodeError):
            self._held = None
            self._end(begun, outcome="refused")
        except StoreError:
            self._held = None
            self._end(begun)
        else:
            self._held = (lease, begun.number)
            self._end(begun, outcome="ok", subnet=lease.subnet, revision=lease.mod_revision)

    def _renew(self, lease: Lease, basis: int) -> None:
        begun = self._begin("renew", subnet=lease.subnet, basis=basis)
        try:
            renewed = self._store.renew(lease, self._attributes(begun), self._task.ttl_s)
        except LeaseLostError:
            self._held = None
            self._end(begun, outcome="lost")
        except StoreError:
            self._end(begun)  # it holds on to what it knows, as an agent does
        else:
            self._held = (renewed, begun.number)
            self._end(begun, outcome="ok", revision=renewed.mod_revision)

    def _release(self, lease: Lease, basis: int) -> None:
        begun = self._begin("release", subnet=lease.subnet, basis=basis)
        self._held = None
        try:
            self._store.release(lease)
        except LeaseLostError:
            self._end(begun, outcome="lost")
        except StoreError:
            self._end(begun)
        else:
            self._end(begun, outcome="ok")

    def _view(self) -> None:
        begun = self._begin("view")
        try:
            leases = self._store.view().leases.values()
        except StoreError:
            self._end(begun)
            return
        holdings = tuple(Holding(x.subnet, x.node, x.create_revision) for x in leases)
        self._end(begun, outcome="ok", holdings=holdings)

    def _attributes(self, operation: Operation) -> LeaseAttributes:
        # The value names the operation that wrote it.
        owner = Owner(self._name, self._name, "", str(operation.number))
        return LeaseAttributes(
            "vxlan", {Family.IPV4: ip_address(f"192.0.2.{self._number}")}, {}, owner
        )

    def _begin(self, kind: Kind, **facts: Any) -> Operation:
        self._next += 1
        ttl_s = float(self._task.ttl_s)
        begun = Operation(self._next, self._name, kind, time.monotonic(), ttl_s=ttl_s, **facts)
        os.write(self._file, begin_line(begun).encode() + b"\n")
        return begun

    def _end(self, begun: Operation, **facts: Any) -> None:
        ended = replace(begun, ended_s=time.monotonic(), **facts)
        os.write(self._file, end_line(ended).encode() + b"\n")


def _plant(store: EtcdLeaseStore, bug: str) -> None:
    """Make the store wrong on purpose, to see that the checkers find it."""
    if not bug:
        return
    condition = {"blind renewal": Mod, "claim without looking": Create}[bug]
    transact = store._writer._transact

    def blind(compare: list[Any], then: list[Any]) -> Any:
        # Whatever else is compared goes with it.
        is_planted = any(isinstance(each, condition) for each in compare)
        return transact([] if is_planted else compare, then)

    store._writer._transact = blind  # type: ignore[method-assign]  # the bug


def main() -> None:
    """Run the clients of one process, each in a thread."""
    task = Task.from_json(sys.argv[1])
    threads = [threading.Thread(target=Client(n, task).run) for n in task.clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
