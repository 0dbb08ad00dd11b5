"""Subnets as etcd keys and as people write them."""

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.errors import LeaseFormatError
from overlay.model.subnet import Subnet, parse_subnet, parse_subnet_key
from tests.unit import odd


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("10.244.3.0-24", "10.244.3.0/24"),
        ("10.244.3.0-24&fd00:1:2:3::-64", "10.244.3.0/24 fd00:1:2:3::/64"),
        ("0.0.0.0-0&fd00:1:2:3::-64", "fd00:1:2:3::/64"),
    ],
)
def test_key_and_subnet_are_one(key: str, shown: str) -> None:
    subnet = parse_subnet_key(key)
    assert str(subnet) == shown
    assert subnet.key == key
    assert parse_subnet(shown) == parse_subnet(key) == subnet


@pytest.mark.parametrize(
    "key",
    [
        "",
        "config",
        "10.244.3.0",
        "10.244.3.0/24",
        "10.244.3.7-24",  # host bits
        "10.244.3.0-33",
        "10.244.3.256-24",
        "010.244.3.0-24",
        "10.244.3.0-24\n",
        "10.244.3.0-24&",
        "10.244.3.0-24&fd00::1-64",  # host bits
        "10.244.3.0-24&fd00::-129",
        "10.244.3.0-24&10.0.0.0-24",
        "0.0.0.0-0",
        "0.0.0.0-0&::-0",
        "\N{ARABIC-INDIC DIGIT ONE}0.244.3.0-24",  # digits, but not ASCII
    ],
)
def test_any_other_key_is_a_format_error(key: str) -> None:
    with pytest.raises(LeaseFormatError):
        parse_subnet_key(key)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.244.3.0/33", "write 10.244.3.0/24"),
        ("nonsense", "write 10.244.3.0/24"),
        ("10.0.0.0/24,10.0.1.0/24", "two networks of one family"),
        ("", "write 10.244.3.0/24"),
    ],
)
def test_bad_spelling_is_told_the_good_one(text: str, words: str) -> None:
    with pytest.raises(LeaseFormatError, match=words):
        parse_subnet(text)


def test_overlap_is_in_any_family() -> None:
    both = parse_subnet("10.244.3.0/24,fd00:1::/64")
    assert both.overlaps(parse_subnet("10.244.0.0/16"))
    assert both.overlaps(parse_subnet("fd00:1::/80"))
    assert not both.overlaps(parse_subnet("10.244.4.0/24,fd00:2::/64"))


def test_a_subnet_has_a_network() -> None:
    with pytest.raises(ValueError, match="at least one network"):
        Subnet()


@given(st.text(alphabet="0123456789.-&:/,abcdef ", max_size=60) | odd.texts)
def test_any_text_parses_or_is_a_format_error(text: str) -> None:
    for parse in (parse_subnet_key, parse_subnet):
        try:
            found = parse(text)
        except LeaseFormatError:
            continue
        assert parse(found.key if parse is parse_subnet_key else str(found)) == found


@given(
    st.none()
    | st.builds(
        lambda n, p: IPv4Network((n, p), strict=False),
        st.integers(1 << 24, (1 << 32) - 1),
        st.integers(1, 32),
    ),
    st.builds(
        lambda n, p: IPv6Network((n, p), strict=False),
        st.integers(1 << 112, (1 << 128) - 1),
        st.integers(1, 128),
    ),
)
def test_every_subnet_is_found_again_by_its_key(v4: IPv4Network | None, v6: IPv6Network) -> None:
    subnet = Subnet(v4, v6)
    assert parse_subnet_key(subnet.key) == subnet
