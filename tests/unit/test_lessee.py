"""The lessee on a store in memory: what becomes of its lease when others claim in its moment."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from overlay.agent.flags import parse_flags
from overlay.agent.host import Host
from overlay.agent.lessee import Lessee
from overlay.agent.status import Mailbox, Status
from overlay.model.lease import Lease, LeaseAttributes, Owner
from overlay.plan.planner import Site
from overlay.store.base import Claim, DuplicateNodeError
from overlay.store.memory import MemoryLeaseStore
from tests.unit.worlds import V4, lease, subnet, underlay


class RacedStore(MemoryLeaseStore):
    """A store in which another node's claim is done just before the one that decides by no view."""

    def __init__(self, rival: Lease) -> None:
        super().__init__()
        self._rival = rival

    def acquire(self, claim: Claim) -> Lease:
        self.put_lease(self._rival.subnet, self._rival.attributes, 60)
        return self.put_lease(subnet(5, claim.config.families), claim.attributes, 60)


def run_once(store: MemoryLeaseStore, place: Path) -> tuple[Lessee, Callable[[], None]]:
    """Return a lessee that runs, as node ``twin`` at 192.0.2.2, and what ends it."""
    flags = parse_flags(["--node-name=twin", f"--state-dir={place}"], {})
    host = Host(find_underlay=lambda _flags, _families: underlay(2))
    sites: Mailbox[Site] = Mailbox(threading.Event())
    lessee = Lessee(flags, store, Status(), sites, lambda _backend, _underlay: None, host=host)
    stop, ended = threading.Event(), threading.Event()
    watch = threading.Thread(target=store.watch, args=(lessee.views.put, lambda _error: None, stop))
    thread = threading.Thread(target=lessee.run, args=(stop, ended.set))

    def end() -> None:
        ended.wait(10)
        stop.set()
        lessee.wake()
        thread.join(10)
        watch.join(10)

    watch.start()
    thread.start()
    return lessee, end


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        pytest.param(
            replace(lease(1).attributes, owner=Owner("twin", "twin")),
            "identity twin",
            id="identity",
        ),
        pytest.param(lease(2).attributes, "has the address", id="address"),
    ],
)
def test_younger_of_two_claims_of_one_moment_is_given_back(
    rival: LeaseAttributes, said: str, tmp_path: Path
) -> None:
    older = replace(lease(4), attributes=rival)
    store = RacedStore(older)
    store.put_config(V4)
    lessee, end = run_once(store, tmp_path)
    end()
    assert isinstance(lessee.fatal, DuplicateNodeError)
    assert said in str(lessee.fatal)
    assert set(store.view().leases) == {older.subnet.key}
