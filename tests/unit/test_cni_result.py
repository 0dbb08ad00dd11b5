"""What the plugin prints: the form of each version, and what came before in a chain."""

import json
from ipaddress import ip_address
from typing import Any

import pytest

from overlay.agent.cni_request import VERSIONS, CniError, CniRequest, parse_request
from overlay.agent.cni_result import format_error, format_ipam_result, format_result
from overlay.kernel.pods import link_mac
from overlay.model.address import MacAddress
from overlay.model.attachment import Attachment
from overlay.model.subnet import parse_subnet

VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/proc/7/fd/9",
    "CNI_IFNAME": "eth0",
}
SUBNET = parse_subnet("10.1.0.0/24,fd00::/64")
HOST_MAC = link_mac("opod1", "host")


def request_of(version: str = "1.1.0", **keys: Any) -> CniRequest:
    document = {"cniVersion": version, "name": "fabric", "type": "overlay", **keys}
    return parse_request(VARIABLES, json.dumps(document).encode())


CONFIG = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay"}


def attachment_of(request: CniRequest) -> Attachment:
    return Attachment(request.key, request.netns, (ip_address("10.1.0.2"),), link="opod1")


def result(request: CniRequest, *addresses: str, mode: str = "ptp") -> Any:
    attachment = Attachment(
        key=request.key,
        sandbox=request.netns,
        addresses=tuple(ip_address(text) for text in addresses),
        link="opod1",
        mac=MacAddress("02:00:00:00:00:01"),
        mtu=1430,
        mode=mode,
    )
    return json.loads(format_result(request, attachment, SUBNET))


@pytest.mark.parametrize("version", VERSIONS)
def test_result_has_the_form_of_its_version(version: str) -> None:
    family4, family6 = ({"version": v} if version < "1.0.0" else {} for v in ("4", "6"))
    mtu = {"mtu": 1430} if version == "1.1.0" else {}
    sandbox = {"sandbox": "/proc/7/fd/9"}
    assert result(request_of(version), "10.1.0.2", "fd00::2") == {
        "cniVersion": version,
        "interfaces": [
            {"name": "opod1", "mac": HOST_MAC, **mtu},
            {"name": "eth0", "mac": "02:00:00:00:00:01", **sandbox, **mtu},
        ],
        "ips": [
            {"interface": 1, "address": "10.1.0.2/32", "gateway": "169.254.1.1", **family4},
            {"interface": 1, "address": "fd00::2/128", "gateway": "fe80::1", **family6},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_what_earlier_plugins_did_comes_first_and_is_kept(version: str) -> None:
    previous: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [{"name": "br0"}, {"name": "eth9", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.5/24", "interface": 1}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    found = result(request_of(version, prevResult=previous), "10.1.0.2")
    assert [i["name"] for i in found["interfaces"]] == ["br0", "eth9", "opod1", "eth0"]
    assert [ip["interface"] for ip in found["ips"]] == [1, 3], "indices count the whole list"
    assert found["ips"][0] == previous["ips"][0]
    assert [route["dst"] for route in found["routes"]] == ["192.0.2.0/24", "0.0.0.0/0"]
    assert found["dns"] == previous["dns"]


@pytest.mark.parametrize("previous", [None, {}, {"dns": {}}, {"ips": None, "interfaces": None}])
def test_empty_previous_result_adds_nothing(previous: Any) -> None:
    found = result(request_of(prevResult=previous), "10.1.0.2")
    assert sorted(found) == ["cniVersion", "interfaces", "ips", "routes"]
    assert len(found["interfaces"]) == 2


@pytest.mark.parametrize("part", ["interfaces", "ips", "routes"])
@pytest.mark.parametrize("odd", [5, True, "text", {"a": 1}])
def test_odd_previous_result_is_refused_or_left_out(part: str, odd: Any) -> None:
    """By whatever way: never by another exception, which would leave the client unanswered."""
    try:
        found = result(request_of(prevResult={part: odd}), "10.1.0.2")
    except CniError:
        return
    assert all(isinstance(item, dict) for item in found[part])


def test_dns_of_the_configuration_is_told() -> None:
    dns = {"nameservers": ["192.0.2.53"], "search": ["example"]}
    assert result(request_of(dns=dns), "10.1.0.2")["dns"] == dns
    assert "dns" not in result(request_of(dns={}), "10.1.0.2")


@pytest.mark.parametrize("version", VERSIONS)
def test_addresses_alone_name_no_interface(version: str) -> None:
    request = request_of(version, type="bridge", ipam={"type": "overlay"})
    assert request.is_ipam
    pair = (ip_address("10.1.0.2"), ip_address("fd00::2"))
    attachment = Attachment(request.key, request.netns, pair)
    family4, family6 = ({"version": v} if version < "1.0.0" else {} for v in ("4", "6"))
    assert json.loads(format_ipam_result(request, attachment, SUBNET)) == {
        "cniVersion": version,
        "ips": [
            {"address": "10.1.0.2/24", "gateway": "10.1.0.1", **family4},
            {"address": "fd00::2/64", "gateway": "fd00::1", **family6},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }


def test_routes_of_the_ipam_section_replace_the_default() -> None:
    routes = [{"dst": "192.0.2.0/24", "gw": "10.1.0.9"}]
    request = request_of(type="bridge", ipam={"type": "overlay", "routes": routes})
    attachment = Attachment(request.key, "", (ip_address("10.1.0.2"),))
    assert json.loads(format_ipam_result(request, attachment, SUBNET))["routes"] == routes


def test_error_form() -> None:
    error = CniError(7, 'no "name"', "add it")
    assert json.loads(format_error(error, "0.4.0")) == {
        "cniVersion": "0.4.0",
        "code": 7,
        "msg": 'no "name"',
        "details": "add it",
    }
    assert "details" not in json.loads(format_error(CniError(11, "later"), "1.1.0"))


@pytest.mark.parametrize("version", VERSIONS)
def test_pod_on_the_bridge_has_the_subnets_prefix_and_gateway(version: str) -> None:
    found = result(request_of(version), "10.1.0.2", "fd00::2", mode="bridge")
    assert [i["name"] for i in found["interfaces"]] == ["opod-bridge", "opod1", "eth0"]
    assert [(ip["interface"], ip["address"], ip["gateway"]) for ip in found["ips"]] == [
        (2, "10.1.0.2/24", "10.1.0.1"),
        (2, "fd00::2/64", "fd00::1"),
    ]
    assert [route["gw"] for route in found["routes"]] == ["10.1.0.1", "fd00::1"]
    assert all(("mtu" in item) == (version == "1.1.0") for item in found["interfaces"])


def test_places_count_what_came_before_in_the_chain() -> None:
    previous = {"interfaces": [{"name": "x"}, {"name": "y"}]}
    found = result(request_of(prevResult=previous), "10.1.0.2", mode="bridge")
    assert found["interfaces"][found["ips"][0]["interface"]]["name"] == "eth0"


def test_what_came_in_does_not_grow() -> None:
    """Every letter takes two bytes, and six as an escape."""
    previous = {"interfaces": [{"name": "\N{CYRILLIC SMALL LETTER ZHE}" * 300_000}]}
    text = json.dumps(
        {**CONFIG, "prevResult": previous}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    request = parse_request(VARIABLES, text)
    found = format_result(request, attachment_of(request), SUBNET)
    assert json.loads(found)["interfaces"][0] == previous["interfaces"][0]
    assert len(found) < len(text) + 1000


def test_half_a_surrogate_pair_stays_what_it_was() -> None:
    text = json.dumps({**CONFIG, "prevResult": {"interfaces": [{"name": "\ud800"}]}}).encode()
    request = parse_request(VARIABLES, text)
    assert b'"\\ud800"' in format_result(request, attachment_of(request), SUBNET)


def test_result_that_the_plugin_would_not_take_is_refused() -> None:
    """Numbers grow: 1e15 becomes 1000000000000000.0."""
    listed = b",".join([b'{"a":1e15}'] * 90_000)
    text = json.dumps(CONFIG).encode()[:-1] + b',"prevResult":{"routes":[' + listed + b"]}}"
    assert len(text) < 1 << 20
    request = parse_request(VARIABLES, text)
    with pytest.raises(CniError, match=r'"prevResult": with it the result has \d+ bytes') as caught:
        format_result(request, attachment_of(request), SUBNET)
    assert caught.value.code == 7


def test_long_errors_are_cut() -> None:
    text = format_error(CniError(103, "route is missing; " * 100_000), "1.1.0")
    assert len(text) < 5000
    assert json.loads(text)["msg"].endswith("...")


@pytest.mark.parametrize(
    ("routes", "named"),
    [
        ({"dst": "0.0.0.0/0"}, "ipam.routes"),
        (["0.0.0.0/0"], "ipam.routes[0]"),
        ([{"gw": "10.1.0.1"}], "ipam.routes[0].dst"),
        ([{"dst": "everywhere"}], "ipam.routes[0].dst"),
        ([{"dst": "::/0"}, {"dst": 7}], "ipam.routes[1].dst"),
        ([{"dst": "0.0.0.0/0", "gw": "10.1.0.0/24"}], "ipam.routes[0].gw"),
        ([{"dst": "0.0.0.0/0", "mtu": "1400"}], "ipam.routes[0].mtu"),
    ],
)
def test_route_that_is_none_is_refused(routes: Any, named: str) -> None:
    request = request_of(type="bridge", ipam={"type": "overlay", "routes": routes})
    with pytest.raises(CniError) as caught:
        format_ipam_result(request, attachment_of(request), SUBNET)
    assert caught.value.code == 7
    assert f'"{named}"' in str(caught.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_route_has_the_fields_of_its_version(version: str) -> None:
    route = {"dst": "192.0.2.0/24", "mtu": 1400, "x": 1}
    request = request_of(version, type="bridge", ipam={"type": "overlay", "routes": [route]})
    found = json.loads(format_ipam_result(request, attachment_of(request), SUBNET))["routes"]
    assert found == [{"dst": "192.0.2.0/24", **({"mtu": 1400} if version == "1.1.0" else {})}]
