"""What a new network config would break, in words."""

from ipaddress import ip_address

import pytest

from overlay.ipam.change import broken_by
from overlay.model.address import Family
from overlay.model.lease import RESERVATION, Lease, LeaseAttributes, Owner
from overlay.model.network import parse_network_config
from overlay.model.subnet import parse_subnet

V4 = '"Network": "10.244.0.0/16"'
V6 = '"EnableIPv6": true, "IPv6Network": "fd00:1::/48"'
DUAL = "10.244.1.0/24,fd00:1:0:1::/64"


def lease(subnet: str, node: str = "a", kind: str = "vxlan") -> Lease:
    public = {Family.IPV4: ip_address("192.0.2.1")}
    return Lease(parse_subnet(subnet), LeaseAttributes(kind, public, {}, Owner(node, node)))


@pytest.mark.parametrize(
    ("current", "new", "leases", "expected"),
    [
        pytest.param(V4, V4, ["10.244.1.0/24"], [], id="the same"),
        pytest.param(V4, '"Network": "10.0.0.0/8"', ["10.244.1.0/24"], [], id="wider"),
        pytest.param(V4, '"Network": "10.9.0.0/16"', [], [], id="no leases"),
        pytest.param(
            V4,
            '"Network": "10.9.0.0/16"',
            ["10.244.1.0/24"],
            ["outside the IPv4 network 10.9.0.0/16: 10.244.1.0/24 (a)"],
            id="elsewhere",
        ),
        pytest.param(
            '"Network": "10.9.0.0/16"',
            '"Network": "10.8.0.0/16"',
            ["10.244.1.0/24"],
            [],
            id="outside already",
        ),
        pytest.param(
            V4,
            V4 + ', "SubnetLen": 25',
            ["10.244.1.0/24"],
            ["with a /25 for each node these nodes would change their subnet: 10.244.1.0/24 (a)"],
            id="other length",
        ),
        pytest.param(
            V4,
            V4 + ', "SubnetMin": "10.244.8.0"',
            ["10.244.1.0/24", "10.244.9.0/24"],
            ["not between 10.244.8.0 and 10.244.255.0: 10.244.1.0/24 (a)"],
            id="range cut",
        ),
        pytest.param(
            f"{V4}, {V6}",
            V4,
            [DUAL],
            ["without IPv6 these leases lose their IPv6 subnet: 10.244.1.0/24 fd00:1:0:1::/64 (a)"],
            id="family removed",
        ),
        pytest.param(
            V4,
            f"{V4}, {V6}",
            ["10.244.1.0/24"],
            [
                (
                    "with IPv6 added these nodes would change their subnet, for their leases have "
                    "no IPv6 part: 10.244.1.0/24 (a)"
                )
            ],
            id="family added",
        ),
        pytest.param(
            V4,
            V4 + ', "Backend": {"Type": "host-gw"}',
            ["10.244.1.0/24"],
            [
                (
                    "backend vxlan becomes host-gw: until every agent has restarted, "
                    "nodes of the two do not reach each other: 10.244.1.0/24 (a)"
                )
            ],
            id="other backend",
        ),
        pytest.param(
            V4,
            V4 + ', "Backend": {"Type": "vxlan", "VNI": 2, "Port": 4789}',
            ["10.244.1.0/24"],
            [
                f"Backend.{change}: until every agent has restarted, nodes of the two "
                "do not reach each other: 10.244.1.0/24 (a)"
                for change in ("VNI 1 becomes 2", "Port 8472 becomes 4789")
            ],
            id="other VNI and port",
        ),
        pytest.param(
            V4,
            V4 + ', "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472, "MTU": 1400}',
            ["10.244.1.0/24"],
            [],
            id="defaults written out, other MTU",
        ),
        pytest.param(
            None,
            V4 + ', "Backend": {"Type": "host-gw"}',
            ["10.244.1.0/24"],
            ["backend host-gw cannot reach leases of another backend: 10.244.1.0/24 (a)"],
            id="no config before",
        ),
        pytest.param(
            V4,
            '"Network": "10.9.0.0/16"',
            [f"10.244.{n}.0/24" for n in range(1, 6)],
            [
                (
                    "outside the IPv4 network 10.9.0.0/16: 10.244.1.0/24 (a), 10.244.2.0/24 (a), "
                    "10.244.3.0/24 (a) and 2 more"
                )
            ],
            id="many are counted",
        ),
    ],
)
def test_what_breaks(current: str | None, new: str, leases: list[str], expected: list[str]) -> None:
    before = parse_network_config(f"{{{current}}}") if current is not None else None
    after = parse_network_config(f"{{{new}}}")
    assert broken_by(after, before, map(lease, leases)) == tuple(expected)


def test_nothing_breaks_for_a_vacant_reservation() -> None:
    vacant = lease("10.244.1.0/24", kind=RESERVATION)
    assert broken_by(parse_network_config('{"Network": "10.9.0.0/16"}'), None, [vacant]) == ()
