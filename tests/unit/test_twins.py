"""Who of two nodes under one identity works on, step by step on a store in memory."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from overlay.agent.twins import Twins
from overlay.model.address import Family
from overlay.model.lease import Lease, LeaseAttributes, Owner
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.model.subnet import parse_subnet
from overlay.store.base import Claim, ContestedLeaseError, DuplicateNodeError
from overlay.store.memory import MemoryLeaseStore


class Host:
    """One of several hosts with the machine id ``twin``; its own name, address and boot."""

    def __init__(self, store: MemoryLeaseStore, number: int, clock: "Clock") -> None:
        self.node = NodeIdentity("twin", f"n{number}", f"boot{number}")
        self.attributes = LeaseAttributes(
            "vxlan",
            {Family.IPV4: IPv4Address(f"192.0.2.{number}")},
            owner=Owner("twin", self.node.name, boot=self.node.boot),
        )
        self.store = store
        self.twins = Twins(store, self.node, clock)

    def acquire(self) -> Lease | None:
        """Claim as a start does; None while a holder is asked."""
        if self.twins.is_waiting(self.store.view(), self.attributes):
            return None
        config = parse_network_config('{"Network": "10.244.0.0/16"}')
        assured = self.twins.assured()
        claim = Claim(self.node, config, self.attributes, 60, assured=assured)
        try:
            lease = self.store.acquire(claim)
        except ContestedLeaseError as exc:
            self.twins.ask(exc.lease, self.attributes)
            return None
        self.twins.forget()
        self.twins.has_written(self.attributes)
        return lease

    def must_answer(self, own: Lease) -> bool:
        return self.twins.must_answer(self.store.view(), own)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FarStore(MemoryLeaseStore):
    """A store whose answer to a challenge takes ``call_s``."""

    call_s = 0.0

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self._time = clock

    def challenge(self, attributes: LeaseAttributes) -> None:
        super().challenge(attributes)
        self._time.now += self.call_s


class Hosts:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = FarStore(self.clock)
        self.first, self.second, self.third = (Host(self.store, n, self.clock) for n in (1, 2, 3))


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


def claimed(host: Host) -> Lease:
    lease = host.acquire()
    assert lease is not None
    return lease


def test_second_refuses_with_both_names_while_the_first_lives(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    assert hosts.first.must_answer(own)
    own = hosts.store.renew(own, hosts.first.attributes, 60)
    assert not hosts.first.must_answer(own), "once is enough"
    with pytest.raises(DuplicateNodeError) as caught:
        hosts.second.acquire()
    for word in ("n1", "n2", "192.0.2.1", "192.0.2.2", "twin", str(own.subnet), "--node-name"):
        assert word in str(caught.value)
    assert hosts.store.view().leases == {own.subnet.key: own}


def test_dead_holder_is_adopted_after_the_wait_and_not_before(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    hosts.clock.now += 1.9
    assert hosts.second.acquire() is None
    hosts.clock.now = hosts.second.twins.decide_at
    assert claimed(hosts.second).subnet == own.subnet


def test_where_the_store_is_slow_the_answer_is_waited_for_longer(hosts: Hosts) -> None:
    claimed(hosts.first)
    hosts.store.call_s = 0.5
    assert hosts.second.acquire() is None
    assert hosts.second.twins.decide_at - hosts.clock.now >= 2 + 4 * 0.5


def test_sign_of_life_at_the_last_moment_still_counts(hosts: Hosts) -> None:
    """It is in no view yet, but in the store: the claim itself runs into it."""
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    stale = hosts.store.view()
    renewed = hosts.store.renew(own, hosts.first.attributes, 60)
    hosts.clock.now = hosts.second.twins.decide_at
    assert not hosts.second.twins.is_waiting(stale, hosts.second.attributes)
    with pytest.raises(DuplicateNodeError, match="n1"):
        hosts.second.twins.ask(renewed, hosts.second.attributes)
    assert hosts.store.view().leases == {own.subnet.key: renewed}


def test_two_that_ask_in_one_moment_do_not_both_adopt(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    assert hosts.third.acquire() is None
    hosts.clock.now = hosts.third.twins.decide_at
    winner = claimed(hosts.second)
    assert winner.subnet == own.subnet
    with pytest.raises(DuplicateNodeError, match="n2"):
        hosts.third.acquire()


def test_first_that_was_away_gives_way_and_says_to_whom(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    hosts.clock.now = hosts.second.twins.decide_at
    taken = claimed(hosts.second)
    assert hosts.first.twins.is_taken_over(taken, own)
    assert hosts.first.acquire() is None
    assert hosts.second.must_answer(taken)
    hosts.store.renew(taken, hosts.second.attributes, 60)
    with pytest.raises(DuplicateNodeError) as caught:
        hosts.first.acquire()
    for word in ("n1", "n2", "192.0.2.1", "192.0.2.2", "--node-name"):
        assert word in str(caught.value)


def test_after_a_sign_of_life_the_question_is_not_asked_again_at_once(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    own = hosts.store.renew(own, hosts.first.attributes, 60)
    challenge = hosts.store.view().challenges
    for _ in range(3):
        hosts.clock.now += 9
        with pytest.raises(DuplicateNodeError, match="n1"):
            hosts.second.acquire()
    assert hosts.store.view().challenges in ({}, challenge)
    hosts.clock.now += 30
    assert hosts.second.acquire() is None, "it asks whether the first still lives"
    hosts.clock.now = hosts.second.twins.decide_at
    assert claimed(hosts.second).subnet == own.subnet


def test_after_a_sign_of_life_a_lease_that_goes_is_claimed_at_once(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    own = hosts.store.renew(own, hosts.first.attributes, 60)
    with pytest.raises(DuplicateNodeError, match="n1"):
        hosts.second.acquire()
    hosts.store.release(own)
    claimed(hosts.second)


def test_of_two_that_claim_in_one_moment_the_younger_is_refused(hosts: Hosts) -> None:
    older = hosts.store.put_lease(parse_subnet("10.244.1.0/24"), hosts.first.attributes, 60)
    younger = hosts.store.put_lease(parse_subnet("10.244.2.0/24"), hosts.second.attributes, 60)
    hosts.first.twins.refuse_second(older, hosts.store.view())
    with pytest.raises(DuplicateNodeError, match="n1"):
        hosts.second.twins.refuse_second(younger, hosts.store.view())


def test_own_write_whose_answer_was_lost_is_no_twin(hosts: Hosts) -> None:
    """The address changed, the renewal was done, and nobody said so."""
    own = claimed(hosts.first)
    moved = replace(hosts.first.attributes, public={Family.IPV4: IPv4Address("192.0.2.77")})
    hosts.first.twins.will_write(moved)
    stored = hosts.store.renew(own, moved, 60)
    assert not hosts.first.twins.is_taken_over(stored, own)
    hosts.first.twins.has_written(moved)
    assert hosts.first.twins.is_taken_over(own, stored)


def test_lease_that_went_to_another_node_ends_the_question(hosts: Hosts) -> None:
    own = claimed(hosts.first)
    assert hosts.second.acquire() is None
    hosts.store.delete_lease(own.subnet)
    other = replace(hosts.third.attributes, owner=Owner("another", "n3"))
    hosts.store.put_lease(own.subnet, other, 60)
    hosts.clock.now = hosts.second.twins.decide_at
    assert claimed(hosts.second).subnet not in {own.subnet, parse_subnet("10.244.0.0/24")}


def test_address_of_another_node_is_not_taken_by_a_running_one(hosts: Hosts) -> None:
    other = replace(hosts.third.attributes, owner=Owner("another", "n3"))
    hosts.store.put_lease(parse_subnet("10.244.9.0/24"), other, 60)
    moved = replace(hosts.first.attributes, public=other.public)
    with pytest.raises(DuplicateNodeError, match=r"192\.0\.2\.3.*n3"):
        hosts.first.twins.refuse_address(moved, hosts.store.view().leases.values())
