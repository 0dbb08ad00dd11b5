"""Networks and mappings that are made the short way, beside those of the standard library."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.address import (
    FAMILIES,
    ByFamily,
    Family,
    IPAddress,
    IPNetwork,
    host_network,
    last_address,
    network_at,
    overlap,
)

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def same(made: IPNetwork, network: IPNetwork) -> bool:
    """Return whether two networks are equal in all that is asked of one."""
    near = network.network_address
    facts = (
        [str(n), repr(n), hash(n), n.prefixlen, n.version, n.num_addresses, n.with_netmask]
        for n in (made, network)
    )
    one, other = facts
    return (
        one == other
        and made == network
        and type(made) is type(network)
        and (near in made) == (near in network)
        and made.broadcast_address == network.broadcast_address
        and last_address(made) == int(network.broadcast_address)
        and sorted([made, network]) == [network, made]
    )


@given(addresses, st.integers(-1, 129))
def test_network_is_the_one_of_the_standard_library(address: IPAddress, length: int) -> None:
    for start in (address, type(address)(int(address) >> 16 << 16)):
        try:
            expected = ip_network(f"{start}/{length}")
        except ValueError as exc:
            with pytest.raises(type(exc)):
                network_at(start, length)
        else:
            assert same(network_at(start, length), expected)
    assert same(host_network(address), ip_network(address))


@given(st.lists(st.tuples(addresses, st.integers(0, 32)), min_size=2, max_size=2))
def test_networks_overlap_as_in_the_standard_library(drawn: list[tuple[IPAddress, int]]) -> None:
    one, other = (ip_network(f"{at}/{length}", strict=False) for at, length in drawn)
    assert overlap(one, other) == one.overlaps(other)
    for length in range(0, one.max_prefixlen, 7):
        wider = one.supernet(new_prefix=min(length, one.prefixlen))
        assert overlap(one, wider)
        assert overlap(wider, one)


values = st.dictionaries(st.sampled_from(FAMILIES), st.integers(1, 3))


@given(values, values)
def test_what_each_family_has_is_as_in_a_dictionary(
    found: dict[Family, int], other: dict[Family, int]
) -> None:
    made = ByFamily.of(found)
    assert dict(made) == found
    assert (made == found, found == made) == (True, True)
    assert (made == other) == (found == other) == (made == ByFamily.of(other))
    assert (len(made), list(made), repr(made)) == (len(found), sorted(found), repr(dict(made)))
    for family in FAMILIES:
        assert (family in made, made.get(family)) == (family in found, found.get(family))
        if family not in found:
            with pytest.raises(KeyError):
                made[family]
    with pytest.raises(AttributeError):
        made.more = 1  # type: ignore[attr-defined]  # what has no room for it


def test_addresses_are_shared_by_networks_made_of_them() -> None:
    for address in (IPv4Address("192.0.2.0"), IPv6Address("2000::")):
        assert host_network(address).network_address is address
        assert network_at(address, 24).network_address is address
