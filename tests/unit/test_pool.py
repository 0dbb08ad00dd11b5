"""The pool: what is given is free and inside, as long as there is one, and rests first."""

from collections import deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.ipam.pool import (
    AddressOutsideError,
    AddressTakenError,
    Demand,
    Pool,
    PoolExhaustedError,
)
from overlay.ipam.spans import AddressRange, Span, parse_span
from overlay.model.address import IPAddress, family_of
from overlay.model.subnet import Subnet, parse_subnet


def addresses(text: str) -> list[IPAddress]:
    return [ip_address(word) for word in text.split()]


def pool_of(
    taken: Iterable[IPAddress] = (),
    after: Iterable[IPAddress] = (),
    reserved: Iterable[Span] = (),
) -> Pool:
    pool = Pool(reserved, after)
    pool.hold(taken)
    return pool


def given_by(subnet: str | Subnet, taken: str = "", after: str = "", wanted: str = "") -> str:
    own = parse_subnet(subnet) if isinstance(subnet, str) else subnet
    pool = pool_of(addresses(taken), addresses(after))
    found = pool.allocate(own, Demand(tuple(addresses(wanted))))
    return " ".join(map(str, found))


@pytest.mark.parametrize(
    ("subnet", "taken", "after", "expected"),
    [
        pytest.param("10.1.0.0/24", "", "", "10.1.0.2", id="first: .0 is VTEP, .1 the gateway"),
        pytest.param("10.1.0.0/24", "10.1.0.2", "", "10.1.0.3", id="first is taken"),
        pytest.param("10.1.0.0/24", "", "10.1.0.9", "10.1.0.10", id="behind the last given"),
        pytest.param("10.1.0.0/24", "10.1.0.10", "10.1.0.9", "10.1.0.11", id="behind, taken"),
        pytest.param("10.1.0.0/24", "", "10.1.0.254", "10.1.0.2", id="around the end"),
        pytest.param("10.1.0.0/24", "", "10.1.0.255", "10.1.0.2", id="after one that is reserved"),
        pytest.param("10.1.0.0/24", "", "10.9.0.9", "10.1.0.2", id="after another lease's"),
        pytest.param("10.1.0.0/24", "", "fd00::9", "10.1.0.2", id="after another family's"),
        pytest.param("10.1.0.0/30", "", "", "10.1.0.2", id="/30 has one"),
        pytest.param("10.1.0.0/30", "", "10.1.0.2", "10.1.0.2", id="/30 again at once"),
        pytest.param("fd00::/126", "", "", "fd00::2", id="/126 has two"),
        pytest.param("fd00::/126", "fd00::2", "", "fd00::3", id="/126, second"),
        pytest.param("fd00::/126", "", "fd00::3", "fd00::2", id="/126, around the end"),
        pytest.param("fd00::/64", "", "fd00::9", "fd00::a", id="IPv6"),
        pytest.param("10.1.0.0/24,fd00::/64", "", "", "10.1.0.2 fd00::2", id="both"),
        pytest.param(
            "10.1.0.0/24,fd00::/64", "fd00::2", "10.1.0.7", "10.1.0.8 fd00::3", id="both, apart"
        ),
        pytest.param(
            "10.1.0.0/16", "", "10.1.0.255", "10.1.1.0", id="wide: .0 within is an address"
        ),
    ],
)
def test_next_address(subnet: str, taken: str, after: str, expected: str) -> None:
    assert given_by(subnet, taken, after) == expected


@pytest.mark.parametrize(
    ("subnet", "taken", "count"),
    [
        ("10.1.0.0/30", "10.1.0.2", 1),
        ("10.1.0.0/29", "10.1.0.2 10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6", 5),
        ("fd00::/126", "fd00::2 fd00::3", 2),
        ("10.1.0.0/31", "", 0),
        ("10.1.0.0/32", "", 0),
        ("fd00::/127", "", 0),
        ("10.1.0.0/24,fd00::/126", "fd00::2 fd00::3", 2),
    ],
)
def test_full_subnet_says_how_many_there_are(subnet: str, taken: str, count: int) -> None:
    with pytest.raises(PoolExhaustedError, match=f"all {count} addresses") as caught:
        given_by(subnet, taken)
    assert caught.value.count == count


DUAL = "10.1.0.0/24,fd00::/64"


@pytest.mark.parametrize(
    ("subnet", "wanted", "expected"),
    [
        (DUAL, "10.1.0.200", "10.1.0.200 fd00::2"),
        (DUAL, "fd00::200", "10.1.0.2 fd00::200"),
        (DUAL, "fd00::200 10.1.0.200", "10.1.0.200 fd00::200"),
        ("10.1.0.0/24", "10.1.0.254", "10.1.0.254"),
        ("fd00::/126", "fd00::3", "fd00::3"),
    ],
)
def test_wanted_address_is_given(subnet: str, wanted: str, expected: str) -> None:
    assert given_by(subnet, wanted=wanted) == expected


@pytest.mark.parametrize(
    ("subnet", "wanted"),
    [
        (DUAL, "10.1.0.0"),
        (DUAL, "10.1.0.1"),
        (DUAL, "10.1.0.255"),
        (DUAL, "10.1.1.2"),
        (DUAL, "fd00::"),
        (DUAL, "fd00::1"),
        (DUAL, "fd00:0:0:1::2"),
        (DUAL, "::ffff:a01:5"),
        (DUAL, "10.1.0.5 10.1.0.6"),
        (DUAL, "10.1.0.5 10.1.0.5"),
        ("10.1.0.0/24", "fd00::5"),
    ],
)
def test_wanted_address_outside_is_refused(subnet: str, wanted: str) -> None:
    with pytest.raises(AddressOutsideError, match=wanted.rpartition(" ")[2]):
        given_by(subnet, wanted=wanted)


def test_wanted_address_in_use_is_refused() -> None:
    with pytest.raises(AddressTakenError, match=r"10\.1\.0\.5 is in use"):
        given_by(DUAL, "10.1.0.5", wanted="10.1.0.5")


def usable(subnet: Subnet) -> list[IPAddress]:
    """Return what may be given, by the definition and not by the code."""
    found: list[IPAddress] = []
    for network in subnet.networks():
        inside: list[IPAddress] = [*network][2:]
        found += inside[:-1] if network.version == 4 and len(inside) > 0 else inside
    return found


small = st.builds(
    lambda v4, v6: parse_subnet(",".join(t for t in (v4, v6) if t) or "10.1.0.16/28"),
    st.sampled_from(["", "10.1.0.16/28", "10.1.0.8/29", "10.1.0.4/30", "10.1.0.0/27"]),
    st.sampled_from(["", "fd00::10/124", "fd00::8/125", "fd00::4/126"]),
)
numbers = st.integers(-3, 36)
near = st.builds(
    lambda is_v4, n: (
        IPv4Address(int(IPv4Address("10.1.0.4")) + n)
        if is_v4
        else IPv6Address(int(IPv6Address("fd00::4")) + n)
    ),
    st.booleans(),
    numbers,
)


@given(small, st.sets(near), st.lists(near, max_size=2), st.lists(near, max_size=2))
def test_what_is_given_is_free_and_inside_and_given_whenever_there_is_one(
    subnet: Subnet, taken: set[IPAddress], after: list[IPAddress], wanted: list[IPAddress]
) -> None:
    free = [address for address in usable(subnet) if address not in taken]
    families = [family_of(network) for network in subnet.networks()]
    is_possible = all(any(family_of(a) is f for a in free) for f in families)
    is_askable = all(a in free for a in wanted) and len({family_of(a) for a in wanted}) == len(
        wanted
    )
    try:
        found = pool_of(taken, after).allocate(subnet, Demand(tuple(wanted)))
    except PoolExhaustedError:
        assert not is_possible
    except (AddressTakenError, AddressOutsideError):
        assert not is_askable
    else:
        assert is_possible
        assert is_askable
        assert [family_of(address) for address in found] == families
        assert set(found) <= set(free)
        assert set(wanted) <= set(found)


@given(small, st.lists(st.integers(0, 40), max_size=60))
def test_released_address_rests_as_long_as_possible(subnet: Subnet, releases: list[int]) -> None:
    """No family's address is given again while one that rested longer is free."""
    rests = {
        family_of(n): deque(a for a in usable(subnet) if a in AddressRange(n))
        for n in subnet.networks()
    }
    held: list[tuple[IPAddress, ...]] = []
    pool = Pool()
    for number in releases:
        if held and number % 3 == 0:
            back = held.pop(number % len(held))  # in any order
            pool.release(back)
            for address in back:
                rests[family_of(address)].append(address)
            continue
        if not all(rests.values()):
            with pytest.raises(PoolExhaustedError):
                pool.allocate(subnet)
            continue
        found = pool.allocate(subnet)
        assert list(found) == [rests[family_of(address)].popleft() for address in found]
        held.append(found)


@given(st.sampled_from(["10.1.0.0/28", "fd00::/124", DUAL]), st.data())
def test_every_address_is_given_once_before_the_subnet_is_full(
    text: str, data: st.DataObject
) -> None:
    subnet = parse_subnet(text)
    spans = [AddressRange(network) for network in subnet.networks()]
    count = min(span.count for span in spans)
    after = data.draw(st.lists(near, max_size=2))
    pool = pool_of((), after)
    taken: set[IPAddress] = set()
    for _ in range(count):
        found = pool.allocate(subnet)
        assert taken.isdisjoint(found)
        taken |= set(found)
    with pytest.raises(PoolExhaustedError):
        pool.allocate(subnet)


def test_huge_subnet_is_searched_in_no_time() -> None:
    """IPv6 leases have 2**64 addresses: nothing may count them out."""
    taken = addresses(" ".join(f"fd00::{n:x}" for n in range(2, 300)))
    pool = pool_of(taken, addresses("fd00::ffff:ffff:ffff:ffff"))
    assert str(pool.allocate(parse_subnet("fd00::/64"))[0]) == "fd00::12c"


def texts(found: Iterable[IPAddress]) -> str:
    return " ".join(map(str, found))


def test_address_by_name_moves_the_other_family_on_and_its_own_not() -> None:
    pool, subnet = Pool(), parse_subnet(DUAL)
    static = pool.allocate(subnet, Demand(tuple(addresses("10.1.0.9"))))
    assert texts(static) == "10.1.0.9 fd00::2"
    assert texts(pool.last) == "fd00::2"
    pool.release(static)
    assert texts(pool.allocate(subnet)) == "10.1.0.2 fd00::3"


def test_address_given_by_name_rests_too() -> None:
    pool, subnet = Pool(), parse_subnet("10.1.0.0/29")
    pool.release(pool.allocate(subnet, Demand(tuple(addresses("10.1.0.3")))))
    found = [texts(pool.allocate(subnet)) for _ in range(5)]
    assert found == ["10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.3"]


def test_what_was_not_in_use_cannot_be_given_back() -> None:
    pool = Pool()
    pool.release(addresses("10.1.0.4"))
    assert texts(pool.allocate(parse_subnet("10.1.0.0/29"))) == "10.1.0.2"
    pool.release(addresses("10.1.0.4"))
    assert pool.usage(ip_network("10.1.0.0/29")) == (1, 5)


def test_reserved_addresses_are_given_by_name_alone() -> None:
    reserved = [parse_span(t) for t in ("10.1.0.0/30", "10.1.0.5-10.1.0.6", "fd00::2")]
    pool, subnet = pool_of(reserved=reserved), parse_subnet("10.1.0.0/29,fd00::/64")
    assert texts(pool.allocate(subnet)) == "10.1.0.4 fd00::3"
    assert pool.usage(ip_network("10.1.0.0/29")) == (1, 1)
    with pytest.raises(PoolExhaustedError, match=r"all 1 addresses that may be given here \(of 5"):
        pool.allocate(subnet)
    assert texts(pool.allocate(subnet, Demand(tuple(addresses("10.1.0.5"))))) == "10.1.0.5 fd00::4"
    assert pool.usage(ip_network("10.1.0.0/29")) == (1, 1), "reserved ones do not count"


def test_choice_is_within_the_ranges_asked_for() -> None:
    pool, subnet = Pool(), parse_subnet(DUAL)
    spans = tuple(parse_span(t) for t in ("10.1.0.20-10.1.0.21", "10.1.0.10"))
    found = [texts(pool.allocate(subnet, Demand(spans=spans))) for _ in range(3)]
    assert found == ["10.1.0.10 fd00::2", "10.1.0.20 fd00::3", "10.1.0.21 fd00::4"]
    with pytest.raises(PoolExhaustedError, match="all 3 addresses"):
        pool.allocate(subnet, Demand(spans=spans))
    with pytest.raises(AddressOutsideError, match=r"10\.1\.0\.9 is not in the ranges"):
        pool.allocate(subnet, Demand(tuple(addresses("10.1.0.9")), spans))
    pool.release(addresses("10.1.0.20"))
    wanted = Demand(tuple(addresses("10.1.0.20")), spans)
    assert texts(pool.allocate(subnet, wanted)) == "10.1.0.20 fd00::5"
    assert texts(pool.allocate(subnet)) == "10.1.0.22 fd00::6"


@given(
    st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)).map(sorted), max_size=3),
    st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)).map(sorted), max_size=3),
)
def test_every_address_within_the_ranges_and_not_reserved_is_given_once(
    within: list[list[int]], reserved: list[list[int]]
) -> None:
    def spans(ends: list[list[int]]) -> tuple[Span, ...]:
        base = IPv4Address("10.1.0.0")
        return tuple(Span(base + low, base + high) for low, high in ends)

    subnet = parse_subnet("10.1.0.0/27")
    pool, demand = pool_of(reserved=spans(reserved)), Demand(spans=spans(within))
    expected = {
        address
        for address in usable(subnet)
        if (not within or any(address in span for span in spans(within)))
        and not any(address in span for span in spans(reserved))
    }
    found = [pool.allocate(subnet, demand)[0] for _ in expected]
    assert set(found) == expected
    with pytest.raises(PoolExhaustedError) as caught:
        pool.allocate(subnet, demand)
    assert caught.value.count == len(expected)


@pytest.mark.parametrize(
    "text", ["", "10.1.0", "10.1.0.9-10.1.0.3", "10.1.0.3-fd00::1", "10.1.0.0/33", "a-b", "-"]
)
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_span(text)
