"""Who reaches whom, pods that no policy tells apart taken together."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from overlay.model.netpol import (
    EVERYTHING,
    BlockPeer,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    World,
)
from overlay.policy.network.compile import CompileOptions
from overlay.policy.network.reachability import (
    TooManyPairsError,
    differences,
    groups,
    reaches,
    shown_ports,
)


def app(name: str) -> Selector:
    return Selector((Requirement("app", Operator.IN, frozenset({name})),))


def pod(number: int, name: str, namespace: str = "shop", **labels: str) -> Pod:
    addresses = frozenset({ip_address(f"10.244.0.{number}"), ip_address(f"fd00::{number}")})
    return Pod(namespace, f"{name}-{number}", addresses, {"app": name, **labels}, "n1")


def world(*policies: NetworkPolicy) -> World:
    pods = [
        pod(1, "web", hash="a1"),
        pod(2, "web", hash="a2"),
        pod(3, "db"),
        pod(4, "guest", "guests"),
    ]
    return World({p.key: p for p in pods}, {}, {p.key: p for p in policies})


ONLY_WEB = NetworkPolicy(
    "shop", "db", app("db"), ingress=(Rule((PodPeer(app("web")),), (PortMatch(port=5432),)),)
)


def told(before: World, after: World, only: str = "", **more: CompileOptions) -> list[str]:
    return [
        f"{d.source.shown} to {d.target.shown}: "
        f"+{shown_ports(d.opened, d.over)} -{shown_ports(d.closed, d.over)}"
        for d in differences(before, after, only=only, **more)
    ]


def test_labels_that_nobody_asks_for_tell_no_pods_apart() -> None:
    assert [group.shown for group in groups(world(ONLY_WEB))] == [
        "guests/guest-4",
        "shop/db-3",
        "shop/web-1 and 1 alike",
    ]
    by_hash = replace(ONLY_WEB, pods=Selector((Requirement("hash", Operator.EXISTS),)))
    assert len(groups(world(), world(ONLY_WEB, by_hash))) == 4


def test_two_families_are_one_line_where_they_agree() -> None:
    assert told(world(), world(ONLY_WEB)) == [
        "guests/guest-4 to shop/db-3: + -TCP, UDP, SCTP",
        "shop/web-1 and 1 alike to shop/db-3: + -TCP 0-5431, TCP 5433-65535, UDP, SCTP",
    ]
    v4 = Rule((BlockPeer(ip_network("10.0.0.0/8")),))
    one_family = NetworkPolicy("guests", "out", EVERYTHING, egress=(v4,))
    assert told(world(), world(one_family)) == [
        "guests/guest-4 to shop/db-3 and 2 alike: + over IPv6 -TCP, UDP, SCTP over IPv6"
    ]


def test_a_namespace_is_shown_with_those_who_reach_it_from_others() -> None:
    assert told(world(), world(ONLY_WEB), only="guests") == [
        "guests/guest-4 to shop/db-3: + -TCP, UDP, SCTP"
    ]
    pairs = {(r.source.shown, r.target.shown) for r in reaches(world(ONLY_WEB), only="guests")}
    assert pairs == {
        ("guests/guest-4", "shop/web-1 and 1 alike"),
        ("shop/db-3", "guests/guest-4"),
        ("shop/web-1 and 1 alike", "guests/guest-4"),
    }


def test_what_leaves_audit_closes() -> None:
    audited = CompileOptions(frozenset({"shop"}))
    assert told(world(ONLY_WEB), world(ONLY_WEB), options=audited) == []
    closed = told(world(ONLY_WEB), world(ONLY_WEB), options=audited, planned=CompileOptions())
    assert len(closed) == 2


def test_more_pairs_than_anybody_would_read_are_refused() -> None:
    pods = [pod(1, f"a{n}", f"team{n}") for n in range(600)]
    many = World({p.key: p for p in pods}, {}, {})
    with pytest.raises(TooManyPairsError, match="--namespace"):
        list(reaches(many))
    assert len(list(reaches(many, only="team7"))) == 2 * 599
