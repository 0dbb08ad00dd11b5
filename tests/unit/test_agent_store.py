"""What the whole agent does when its store goes and comes back."""

import threading
from pathlib import Path

from overlay.agent.flags import parse_flags
from overlay.agent.host import Host
from overlay.agent.main import Agent
from overlay.store.base import StoreUnavailableError
from overlay.store.memory import MemoryLeaseStore
from tests.etcd.support import eventually


class CountedBell(threading.Event):
    """An event that counts how often it was rung."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def set(self) -> None:
        self.times += 1
        super().set()


def test_lessee_tries_again_as_soon_as_the_store_is_back(tmp_path: Path) -> None:
    """Its own pauses grow to half a minute: too long for a lease that is due."""
    bells: list[CountedBell] = []

    def make() -> CountedBell:
        bells.append(CountedBell())
        return bells[-1]

    flags = parse_flags(["--node-name=a", f"--state-dir={tmp_path}"], {})
    store = MemoryLeaseStore()
    agent = Agent(flags, store, host=Host(bell=make))
    stop, _reconciler, lessee = bells
    watch = threading.Thread(target=agent._watch)
    watch.start()
    try:
        eventually(lambda: agent.status.get().is_store_connected)
        store.outage = StoreUnavailableError("away")
        eventually(lambda: agent.status.get().store_error == "away")
        before = lessee.times
        store.outage = None
        eventually(lambda: lessee.times > before)
    finally:
        stop.set()
        watch.join(10)
    assert agent.status.get().store_error is None
