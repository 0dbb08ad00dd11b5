"""The rules of the bridge's ports: what a chain lets through, and changes port by port."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.address import MacAddress, parse_mac
from overlay.policy.ports import PORT_TABLE, Port, change, link_local, whole_table


def port(number: int, *addresses: str) -> Port:
    own = tuple(ip_address(a) for a in addresses or (f"10.1.0.{number}", f"fd00::{number:x}"))
    return Port(f"opod{number:011x}", MacAddress(f"02:00:00:00:00:{number:02x}"), own)


def test_table_reads_like_the_rules_of_each_port() -> None:
    text = whole_table([port(5, "10.1.0.5")])
    assert text == (
        "table bridge overlay {}\ndelete table bridge overlay\n"
        "table bridge overlay {\n"
        "\tchain ov_opod00000000005 {\n"
        '\t\tether saddr != 02:00:00:00:00:05 counter drop comment "a MAC address, forged"\n'
        "\t\tether type ip ip saddr 10.1.0.5 accept\n"
        "\t\tether type arp arp saddr ether != 02:00:00:00:00:05 counter drop "
        'comment "ARP, forged"\n'
        "\t\tether type arp arp operation request arp saddr ip 0.0.0.0 accept\n"
        "\t\tether type arp arp saddr ip 10.1.0.5 accept\n"
        '\t\tcounter drop comment "a source address, forged"\n'
        "\t}\n"
        "\tmap ov_ports {\n"
        "\t\ttype ifname : verdict\n"
        '\t\telements = { "opod00000000005" : goto ov_opod00000000005 }\n'
        "\t}\n"
        "\tchain ov_source {\n"
        "\t\ttype filter hook prerouting priority -300; policy accept;\n"
        '\t\tiifname != "opod*" accept\n'
        "\t\tiifname vmap @ov_ports\n"
        '\t\tcounter drop comment "a port that nobody knows"\n'
        "\t}\n}\n"
    )


def test_family_that_a_pod_lacks_passes_nothing() -> None:
    v4, v6 = whole_table([port(5, "10.1.0.5")]), whole_table([port(5, "fd00::5")])
    assert "ip6" not in v4
    assert "arp" not in v6
    assert "ip saddr" not in v6


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        ("02:00:00:00:00:01", "fe80::ff:fe00:1"),
        ("4a:ed:bf:b6:be:25", "fe80::48ed:bfff:feb6:be25"),
        ("00:11:22:33:44:55", "fe80::211:22ff:fe33:4455"),
    ],
)
def test_link_local_address_is_the_kernels(mac: str, address: str) -> None:
    assert str(link_local(parse_mac(mac))) == address


ports = st.sets(st.integers(2, 9)).map(lambda numbers: [port(n) for n in numbers])


@given(ports, ports)
def test_change_names_what_differs_and_nothing_else(old: list[Port], new: list[Port]) -> None:
    text = change(old, new)
    assert (text == "") == (set(old) == set(new))
    for each in (*old, *new):
        assert (f"delete chain {PORT_TABLE} {each.chain}\n" in text) == (
            each in old and each not in new
        )
        assert (f"\tchain {each.chain} {{" in text) == (each in new and each not in old)


def test_port_whose_address_changed_is_written_anew() -> None:
    text = change([port(5)], [port(5, "10.1.0.9")])
    assert (
        text.index("delete element") < text.index("delete chain") < text.index("table bridge ") + 99
    )
    assert "10.1.0.9" in text
