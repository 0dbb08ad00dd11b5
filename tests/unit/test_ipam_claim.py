"""What a node that asks for a lease is given, case by case."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Final

import pytest

from overlay.ipam.claim import (
    Adopt,
    Claimant,
    Contest,
    Create,
    Decision,
    Duplicate,
    Exhausted,
    decide,
    is_same_place,
    rival_of,
    subnet_behind,
)
from overlay.model.address import Family, family_of
from overlay.model.lease import RESERVATION, Lease, LeaseAttributes, LeaseView, Owner, SkippedKey
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.model.subnet import parse_subnet

CONFIG: Final = parse_network_config('{"Network": "10.244.0.0/22", "SubnetLen": 24}')
NODE: Final = NodeIdentity("id-1", "node-1")
CLAIMANT: Final = Claimant(
    NODE, {family_of(a): a for a in map(ip_address, ["192.0.2.1", "fc00::1"])}
)


def lease(text: str) -> Lease:
    """Return a lease from ``SUBNET OWNER [ADDRESS...] @REVISION``.

    OWNER is a node id, ``flannel`` for none, or ``for:NAME`` for a reservation.
    """
    subnet, owner, *addresses, revision = text.split()
    public = {family_of(a): a for a in map(ip_address, addresses)}
    kind = "vxlan"
    facts: Owner | None = Owner(owner, owner.replace("id", "node"))
    if owner == "flannel":
        facts = None
    elif owner.startswith("for:"):
        kind, facts = RESERVATION, Owner(owner[4:], owner[4:])
    number = int(revision[1:])
    return Lease(parse_subnet(subnet), LeaseAttributes(kind, public, {}, facts), number, number, 1)


def spelled(decision: Decision) -> str:
    """Return a decision as an operator would tell it."""
    match decision:
        case Adopt(kept, release):
            words = f"adopt {kept.subnet}"
        case Create(subnet, release):
            words = f"create {subnet}"
        case Contest(other):
            return f"ask: {other.subnet}"
        case Duplicate(other, address):
            return f"refuse: {address} is {other.node}'s"
        case Exhausted(count, leased, reserved):
            return f"refuse: {count} subnets, {leased} leased, {reserved} reserved"
    return " ".join([words, *(f"release {each.subnet}" for each in release)])


@pytest.mark.parametrize(
    ("leases", "expected"),
    [
        pytest.param([], "create 10.244.1.0/24", id="nothing there"),
        pytest.param(
            ["10.244.2.0/24 id-1 192.0.2.9 @5"], "ask: 10.244.2.0/24", id="own id, other address"
        ),
        pytest.param(
            ["10.244.2.0/24 flannel 192.0.2.1 @5"],
            "adopt 10.244.2.0/24",
            id="flannel's of the node",
        ),
        pytest.param(
            ["10.244.2.0/24 flannel fc00::1 @5"], "adopt 10.244.2.0/24", id="flannel's, by IPv6"
        ),
        pytest.param(
            ["10.244.1.0/24 flannel 192.0.2.7 @5"],
            "create 10.244.2.0/24",
            id="flannel's of another",
        ),
        pytest.param(
            ["10.244.2.0/24 id-2 192.0.2.1 @5"],
            "refuse: 192.0.2.1 is node-2's",
            id="address of another node",
        ),
        pytest.param(
            ["10.244.3.0/24 id-1 192.0.2.1 @4", "10.244.2.0/24 id-2 192.0.2.2 fc00::1 @5"],
            "refuse: fc00::1 is node-2's",
            id="address of another node, though there is an own lease",
        ),
        pytest.param(["10.244.2.0/24 for:node-1 @5"], "adopt 10.244.2.0/24", id="reserved by name"),
        pytest.param(["10.244.2.0/24 for:id-1 @5"], "adopt 10.244.2.0/24", id="reserved by id"),
        pytest.param(
            ["10.244.1.0/24 for:node-2 @5"], "create 10.244.2.0/24", id="reserved for another"
        ),
        pytest.param(
            ["10.244.2.0/24 for:node-1 @5", "10.244.3.0/24 id-1 192.0.2.1 @6"],
            "adopt 10.244.3.0/24",
            id="own before reserved",
        ),
        pytest.param(
            ["10.99.0.0/24 for:node-1 @5"],
            "create 10.244.1.0/24",
            id="reserved outside the network",
        ),
        pytest.param(
            ["10.99.0.0/24 id-1 192.0.2.1 @5"],
            "create 10.244.1.0/24 release 10.99.0.0/24",
            id="own outside the network",
        ),
        pytest.param(
            ["10.244.2.0/25 id-1 192.0.2.1 @5"],
            "create 10.244.1.0/24 release 10.244.2.0/25",
            id="own of another length",
        ),
        pytest.param(
            ["10.244.3.0/24 id-1 192.0.2.1 @7", "10.244.2.0/24 id-1 192.0.2.1 @6"],
            "adopt 10.244.2.0/24 release 10.244.3.0/24",
            id="several own: the oldest",
        ),
        pytest.param(
            ["10.99.0.0/24 id-1 192.0.2.1 @5", "10.244.2.0/24 id-1 192.0.2.1 @6"],
            "adopt 10.244.2.0/24 release 10.99.0.0/24",
            id="several own: the oldest still offered",
        ),
        pytest.param(
            ["10.244.2.0/23 id-2 192.0.2.2 @5", "10.244.2.0/24 id-1 192.0.2.1 @6"],
            "create 10.244.1.0/24 release 10.244.2.0/24",
            id="gives way to an older one",
        ),
        pytest.param(
            ["10.244.2.0/23 id-2 192.0.2.2 @7", "10.244.2.0/24 id-1 192.0.2.1 @6"],
            "adopt 10.244.2.0/24",
            id="stays before a younger one",
        ),
        pytest.param(
            [f"10.244.{n}.0/24 id-{n}9 192.0.2.{n}9 @{n}" for n in (1, 2)]
            + ["10.244.3.0/24 for:x @9"],
            "refuse: 3 subnets, 2 leased, 1 reserved",
            id="full",
        ),
    ],
)
def test_decision(leases: list[str], expected: str) -> None:
    view = LeaseView(10, {each.subnet.key: each for each in map(lease, leases)})
    assert spelled(decide(view, CLAIMANT, CONFIG, lambda _: 0)) == expected


@pytest.mark.parametrize(
    ("preferred", "expected"),
    [
        ("10.244.3.0/24", "create 10.244.3.0/24"),
        ("10.244.2.0/24", "create 10.244.1.0/24"),  # taken
        ("10.99.0.0/24", "create 10.244.1.0/24"),  # not offered
    ],
)
def test_preferred_subnet(preferred: str, expected: str) -> None:
    held = lease("10.244.2.0/24 id-2 192.0.2.2 @5")
    claimant = Claimant(NODE, CLAIMANT.public, parse_subnet(preferred))
    decision = decide(LeaseView(9, {held.subnet.key: held}), claimant, CONFIG, lambda _: 0)
    assert spelled(decision) == expected


PLACE: Final = LeaseAttributes("vxlan", CLAIMANT.public, owner=Owner("id-1", "node-1", boot="b1"))


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        pytest.param(PLACE, True, id="the same"),
        pytest.param(replace(PLACE, owner=Owner("id-1", "node-1", "2.0")), True, id="no boot told"),
        pytest.param(replace(PLACE, owner=Owner("id-1", "node-1", boot="b2")), False, id="boot"),
        pytest.param(replace(PLACE, owner=Owner("id-1", "other", boot="b1")), False, id="name"),
        pytest.param(
            replace(PLACE, public={Family.IPV4: ip_address("192.0.2.1")}), True, id="one family"
        ),
        pytest.param(
            replace(PLACE, public={Family.IPV6: ip_address("fc00::2")}), False, id="one address"
        ),
    ],
)
def test_hosts_are_told_apart(theirs: LeaseAttributes, *, expected: bool) -> None:
    assert is_same_place(PLACE, theirs) is expected
    assert is_same_place(theirs, PLACE) is expected


def test_lease_of_the_own_id_is_adopted_where_it_is_assured() -> None:
    held = lease("10.244.2.0/24 id-1 192.0.2.9 @5")
    view = LeaseView(9, {held.subnet.key: held})
    assured = replace(CLAIMANT, assured=frozenset({5}))
    assert spelled(decide(view, assured, CONFIG, lambda _: 0)) == "adopt 10.244.2.0/24"
    outdated = replace(CLAIMANT, assured=frozenset({4}))
    assert spelled(decide(view, outdated, CONFIG, lambda _: 0)) == "ask: 10.244.2.0/24"


def test_every_lease_of_the_own_id_is_asked_about_before_one_is_let_go() -> None:
    held = [lease("10.244.1.0/24 id-1 192.0.2.1 @3"), lease("10.244.2.0/24 id-1 192.0.2.9 @5")]
    view = LeaseView(9, {each.subnet.key: each for each in held})
    assert spelled(decide(view, CLAIMANT, CONFIG, lambda _: 0)) == "ask: 10.244.2.0/24"


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([], None, id="alone"),
        pytest.param(["10.244.3.0/24 id-1 192.0.2.9 @4"], "10.244.3.0/24", id="identity, older"),
        pytest.param(["10.244.3.0/24 id-1 192.0.2.9 @6"], None, id="identity, younger"),
        pytest.param(["10.244.3.0/24 id-1 192.0.2.1 @4"], None, id="its own older one"),
        pytest.param(["10.244.3.0/24 id-2 192.0.2.1 @4"], "10.244.3.0/24", id="address, older"),
        pytest.param(["10.244.3.0/24 id-2 192.0.2.1 @6"], None, id="address, younger"),
        pytest.param(["10.244.3.0/24 id-2 192.0.2.2 @4"], None, id="any other node"),
    ],
)
def test_first_of_two_that_claim_in_one_moment_is_known(
    others: list[str], expected: str | None
) -> None:
    found = rival_of(lease("10.244.2.0/24 id-1 192.0.2.1 @5"), map(lease, others))
    assert (found and str(found.subnet)) == expected


def test_unreadable_keys_are_not_claimed() -> None:
    keys = ("10.244.1.0-24", "10.244.2.0-24&junk", "nonsense", "10.244.3.7-24")
    view = LeaseView(9, skipped=tuple(SkippedKey(key, "bad") for key in keys))
    assert spelled(decide(view, CLAIMANT, CONFIG, lambda _: 0)) == "create 10.244.3.0/24"
    assert subnet_behind("nonsense") is None


def test_node_without_a_name_gets_no_nameless_reservation() -> None:
    held = lease("10.244.1.0/24 for: @5")
    claimant = Claimant(NodeIdentity("id-1", ""), {})
    decision = decide(LeaseView(9, {held.subnet.key: held}), claimant, CONFIG, lambda _: 0)
    assert spelled(decision) == "create 10.244.2.0/24"
