"""One reconciler on a kernel in memory: what it repairs, what it names, how it is bounded."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from overlay.agent.firewall import Outcome
from overlay.agent.flags import parse_flags
from overlay.agent.reconciler import Reconciler
from overlay.agent.status import Mailbox, Status
from overlay.kernel.base import NOTHING, KernelError
from overlay.kernel.fake import FakeKernel
from overlay.kernel.notices import OVERFLOW, SYSCTL, Change, Notice, RulesetChange
from overlay.model.kernel import FdbEntry, KernelObject, Key, Route, Verb
from overlay.model.lease import Lease, LeaseView
from overlay.plan.planner import Site
from overlay.policy.egress import Nodes
from tests.unit.worlds import V4, by_key, lease, site

HERE = site(V4)
FAMILIES = HERE.config.families
TABLES = frozenset({"inet overlay"})


class FakeFilter:
    """A table that somebody may have changed, and a sysctl that somebody may have turned back."""

    def __init__(self) -> None:
        self.is_changed = False
        self.is_turned_back = False
        self.looks = self.surroundings_looks = 0
        self.written: list[int] = []
        self.look: Callable[[bool], None] = lambda _audit: None
        self.refusal = ""  # why a sysctl cannot be set

    def filter(
        self,
        site: Site,
        nodes: Nodes,
        *,
        direct: bool,
        audit: bool,
        told: Sequence[int] = (),
    ) -> Outcome:
        del site, nodes, direct
        self.looks += audit
        self.look(audit)
        repairs = ("the table",) if audit and self.is_changed else ()
        self.is_changed = self.is_changed and not audit
        foreign = [number for number in told if number not in self.written]
        return Outcome(repairs=repairs, applied=len(repairs), foreign=foreign)

    def surroundings(self, site: Site, checksums: str) -> Outcome:
        del site
        self.surroundings_looks += 1
        repairs = ("sysctl x: 0 -> 1",) if self.is_turned_back else ()
        self.is_turned_back = False
        return Outcome((self.refusal,) if self.refusal else (), repairs=repairs)


class Bench:
    """A reconciler with its clock, kernel and filter; ``turn`` is one turn of its loop."""

    def __init__(self, place: Path) -> None:
        self.now = 100.0
        self.kernel, self.filter, self.status = FakeKernel(), FakeFilter(), Status()
        words = ["--node-name=n1", f"--state-dir={place}", f"--subnet-file={place / 'subnet.env'}"]
        flags = parse_flags([*words, "--audit-interval=1h"], {})
        self.bell = _OneTurn()
        self.reconciler = Reconciler(
            flags, self.status, lambda: self.kernel, self.filter, lambda: self.now, self.bell
        )
        self.reconciler.sites.put(HERE)

    def see(self, *leases: Lease) -> None:
        view = LeaseView(1, by_key(HERE.own, *leases))
        self.reconciler.views.put(view)
        self.turn()

    def tell(self, *notices: Notice) -> None:
        self.reconciler.tell(notices)
        self.turn()

    def turn(self) -> float:
        """Return the seconds until the next turn is due."""
        self.bell.stop.clear()
        self.reconciler.run(self.bell.stop)
        return self.bell.waits_s

    def route(self) -> Route:
        return next(
            o for o in self.kernel.dump() if isinstance(o, Route) and "10.244.2" in str(o.prefix)
        )


class _OneTurn(threading.Event):
    """A bell that ends the loop when it comes to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = threading.Event()
        self.waits_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s = timeout if timeout is not None else 0.0
        self.stop.set()
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.see(*peers(2, 3))
    return bench


def peers(*numbers: int) -> Sequence[Lease]:
    return [lease(i, families=FAMILIES) for i in numbers]


def changed(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if "somebody else" in r.message]


def test_deleted_route_is_put_back_and_who_did_it_is_named(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    route = bench.route()
    del bench.kernel.objects[route.key]
    bench.tell(Change("del", route.key, route, by="probably ip (pid 77)"))
    assert route.key in bench.kernel.objects
    what = f"somebody else changed 1 of our kernel objects (set {route})"
    assert changed(caplog) == [f"{what}, probably ip (pid 77); put right"]
    assert bench.status.get().counters.repairs == 1


def test_our_own_notices_set_off_nothing(bench: Bench) -> None:
    before = bench.status.get().counters
    for item in bench.kernel.dump():
        bench.tell(Change("set", item.key, item))
    assert bench.status.get().counters == before


def test_a_device_without_our_mark_is_looked_at_alone_before_all_else(bench: Bench) -> None:
    """While we make one, and once somebody has taken the mark away."""
    (device,) = bench.kernel.devices()
    passes = bench.status.get().counters.passes
    bench.tell(Change("set", device.key))
    assert bench.status.get().counters.passes == passes
    del bench.kernel.objects[device.key]
    bench.tell(Change("set", device.key))
    assert bench.kernel.objects[device.key] == device
    assert bench.status.get().counters.passes == passes + 1


@pytest.mark.parametrize("verb", ["set", "del"])
def test_a_device_that_was_down_or_gone_is_a_reason_to_look_at_all(
    bench: Bench, verb: Verb
) -> None:
    """It may be as before again, but its routes went with it."""
    (device,) = bench.kernel.devices()
    route = bench.route()
    del bench.kernel.objects[route.key]
    bench.tell(Change(verb, device.key, replace(device, is_up=False)))
    assert bench.kernel.objects[route.key] == route


def test_repair_beside_a_lease_change_names_the_repair_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    route = bench.route()
    del bench.kernel.objects[route.key]
    bench.reconciler.views.put(LeaseView(2, by_key(HERE.own, *peers(2, 4, 5))))
    bench.tell(Change("del", route.key, route))
    assert len(bench.kernel.objects) == 3 + 1 + 3 * 4
    assert changed(caplog) == [
        f"somebody else changed 1 of our kernel objects (set {route}); put right"
    ]
    assert bench.status.get().counters.repairs == 1


def test_lost_notices_are_counted_and_everything_is_looked_at(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    del bench.kernel.objects[bench.route().key]
    bench.tell(OVERFLOW)
    assert bench.route()
    assert "more than could be read" in caplog.text
    assert bench.status.get().counters.notice_losses == 1


def test_one_who_fights_over_an_object_is_backed_off_and_named(bench: Bench) -> None:
    route = bench.route()
    repairs, started = 0, bench.now
    while bench.now < started + 60:
        if bench.kernel.objects.pop(route.key, None):
            repairs += 1
        bench.tell(Change("del", route.key, route, by="probably bird (pid 9)"))
        bench.now += 0.01
    assert repairs < 20, "of 6000 that were provoked"
    (fight,) = bench.status.get().contested(bench.now)
    assert str(fight).startswith(f"somebody changes {route}, probably bird (pid 9) again and again")
    wait_s = bench.turn()
    assert 0 < wait_s <= 10
    bench.now += wait_s
    bench.turn()
    assert route.key in bench.kernel.objects, "it is put right in the end"
    assert bench.status.get().contested(bench.now + 31) == ()


def test_other_objects_are_put_right_at_once_while_one_is_fought_over(bench: Bench) -> None:
    route = bench.route()
    for _ in range(8):
        bench.kernel.objects.pop(route.key, None)
        bench.tell(Change("del", route.key, route))
        bench.now += 0.3
    other: KernelObject = next(o for o in bench.kernel.dump() if isinstance(o, FdbEntry))
    del bench.kernel.objects[other.key]
    bench.tell(Change("del", other.key, other))
    assert other.key in bench.kernel.objects


def test_changed_table_is_written_anew_and_the_others_transaction_is_named(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.filter.is_changed = True
    bench.filter.written = [5]
    bench.tell(
        RulesetChange(5, "nft (pid 1)", TABLES), RulesetChange(6, "firewalld (pid 2)", TABLES)
    )
    assert changed(caplog) == ["somebody else changed the table, firewalld (pid 2); put right"]
    assert not bench.filter.is_changed


def test_one_who_fights_over_the_table_is_backed_off(bench: Bench) -> None:
    before = bench.filter.looks
    for step in range(3000):
        bench.filter.is_changed = True
        bench.tell(RulesetChange(step, "firewalld (pid 2)", TABLES))
        bench.now += 0.01
    assert 5 < bench.filter.looks - before < 20
    (fight,) = bench.status.get().contested(bench.now)
    assert "firewalld (pid 2)" in str(fight)


def test_others_who_write_their_own_rules_all_the_time_cost_a_tenth_at_most(bench: Bench) -> None:
    """kube-proxy does; each of its transactions may have been about our table."""

    def look(audit: bool) -> None:
        bench.now += 0.02 * audit

    bench.filter.look = look
    before, began = bench.filter.looks, bench.now
    bench.tell(RulesetChange(0, "kube-proxy (pid 3)", TABLES))
    assert bench.filter.looks == before + 1, "at first at once"
    step = 0
    while bench.now < began + 10:
        step += 1
        bench.tell(RulesetChange(step, "kube-proxy (pid 3)", TABLES))
        bench.now += 0.001
    assert 0.02 * (bench.filter.looks - before) < 0.1 * (bench.now - began)
    bench.filter.is_changed = True
    bench.tell(RulesetChange(step + 1, "firewalld (pid 2)", TABLES))
    wait_s = bench.turn()
    assert wait_s <= 0.5
    bench.now += wait_s
    bench.turn()
    assert not bench.filter.is_changed


def test_rules_of_others_alone_raise_no_doubt_but_about_what_iptables_forwards(
    bench: Bench,
) -> None:
    filter_ = bench.filter
    before = (filter_.looks, filter_.surroundings_looks)
    bench.tell(RulesetChange(1, "kube-proxy (pid 3)"))
    assert (filter_.looks, filter_.surroundings_looks) == before
    bench.tell(RulesetChange(2, "dockerd (pid 4)", frozenset({"ip filter"})))
    assert (filter_.looks, filter_.surroundings_looks) == (before[0], before[1] + 1)
    assert bench.turn() > 60


def test_one_who_fights_over_a_sysctl_is_backed_off(bench: Bench) -> None:
    before = bench.status.get().counters.passes
    for _ in range(3000):
        bench.filter.is_turned_back = True
        bench.tell(SYSCTL)
        bench.now += 0.01
    assert 5 < bench.status.get().counters.passes - before < 20


def test_underlay_that_went_up_is_looked_at(bench: Bench) -> None:
    before = bench.status.get().counters.passes
    bench.tell(Change("set", ("device", "eth7")))
    assert bench.status.get().counters.passes == before
    bench.tell(Change("set", ("device", HERE.underlay.device)))
    assert bench.status.get().counters.passes == before + 1


def test_agent_without_a_site_waits_whatever_it_is_told(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.see(*peers(*range(2, 32)))
    first.see()
    bench = Bench(tmp_path)
    bench.reconciler.sites = Mailbox(bench.bell)  # nothing there yet
    bench.now += 1000  # what the first one held is overdue
    bench.tell(RulesetChange(1, "", TABLES), SYSCTL, OVERFLOW)
    assert bench.turn() > 60


def test_kernel_that_refuses_all_is_not_asked_again_and_again(bench: Bench) -> None:
    def refuse(known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        del known
        raise KernelError("no buffer space")

    bench.kernel.dump = refuse  # type: ignore[method-assign]  # a kernel out of memory
    bench.tell(RulesetChange(1, "", TABLES), OVERFLOW)
    assert bench.turn() > 0.1
    assert bench.status.get().kernel_errors == ("no buffer space",)


UNRELATED = Change("set", ("neigh", "eth9", "192.0.2.77"))


def test_error_that_lasts_is_tried_again_by_its_backoff_whatever_else_is_told(
    bench: Bench,
) -> None:
    bench.filter.refusal = "sysctl x: read-only"
    bench.see(*peers(2, 3, 4))
    bench.now += 3600
    bench.turn()
    before = bench.status.get().counters.passes
    for _ in range(1000):
        bench.tell(UNRELATED)
        bench.now += 0.01
    assert bench.status.get().counters.passes - before < 10
    assert bench.status.get().kernel_errors == ("sysctl x: read-only",)
    bench.filter.refusal = ""
    bench.now += bench.turn()
    bench.turn()
    assert bench.status.get().kernel_errors == ()


def test_error_that_lasts_does_not_keep_other_drift_from_repair(bench: Bench) -> None:
    bench.filter.refusal = "sysctl x: read-only"
    bench.now += 3600
    bench.turn()
    route = bench.route()
    del bench.kernel.objects[route.key]
    bench.tell(Change("del", route.key, route))
    assert bench.kernel.objects[route.key] == route
    bench.see(*peers(2, 3, 4))
    assert len(bench.kernel.objects) == 4 + 3 * 4
    assert bench.status.get().kernel_errors == ("sysctl x: read-only",), "nobody looked again"


def test_kernel_that_refuses_all_is_left_in_peace_while_leases_change(bench: Bench) -> None:
    dumps = 0

    def refuse(known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        del known
        nonlocal dumps
        dumps += 1
        raise KernelError("no buffer space")

    bench.kernel.dump = refuse  # type: ignore[method-assign]  # a kernel out of memory
    bench.tell(OVERFLOW)
    for step in range(1000):
        bench.see(*peers(2, 3 + step % 5))
        bench.tell(UNRELATED, RulesetChange(step, "", TABLES))
        assert bench.turn() > 0, "it would go round in circles"
        bench.now += 0.01
    assert 5 < dumps < 30, "of 2000 that were provoked in 10 s"


def test_mass_deletion_is_held_and_let_go_in_time(bench: Bench) -> None:
    bench.see(*peers(*range(2, 32)))
    whole = dict(bench.kernel.objects)
    bench.see(*peers(2))
    assert bench.kernel.objects == whole
    wait_s = bench.turn()
    assert wait_s == 60
    bench.now += wait_s
    bench.turn()
    assert len(bench.kernel.objects) == 4 + 4


def test_operators_word_is_carried_out(bench: Bench) -> None:
    bench.see(*peers(*range(2, 32)))
    bench.see(*peers(2))
    bench.reconciler.hold.answer(let_go=True)
    bench.turn()
    assert len(bench.kernel.objects) == 4 + 4


def test_counters_lose_nothing_between_threads() -> None:
    status = Status()

    def work() -> None:
        for _ in range(2000):
            status.count(repairs=1, ops=2)
            status.update(peers=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (status.get().counters.repairs, status.get().counters.ops) == (8000, 16000)
