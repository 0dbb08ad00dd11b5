"""Addresses for the reference plugins: ``"ipam": {"type": "overlay"}`` under bridge, macvlan, ptp.

They find the plugin by CNI_PATH and hand it their whole configuration.
"""

import json
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Any, Final

import pytest

from overlay.model.address import FAMILIES, IPAddress
from tests.e2e.chains import Chain, ChainError
from tests.e2e.pair import Pair, addresses, lab_of_two, meets, needs_reference_plugins, place_of
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = [pytest.mark.e2e, needs_reference_plugins]

BRIDGE: Final = {"type": "bridge", "bridge": "cni-t0", "isGateway": True, "hairpinMode": True}
MACVLAN: Final = {"type": "macvlan", "master": "eth0", "mode": "bridge"}
PTP: Final = {"type": "ptp"}
ROUTED: Final = [pytest.param(BRIDGE, id="bridge"), pytest.param(PTP, id="ptp")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with host_unchanged(), lab_of_two() as lab:
        pair = Pair(lab, tmp_path_factory.mktemp("ipam"))
        yield pair
        pair.close()


@pytest.fixture
def peer(pair: Pair) -> Iterator[Netns]:
    """A pod on the other node, by our plugin alone."""
    chain = pair.chain("n2", pair.own("n2"))
    pod = pair.pod()
    chain.add(place_of(pod, "peer"))
    yield pod
    chain.delete(place_of(pod, "peer"))


def under(pair: Pair, plugin: dict[str, Any], **more: Any) -> Chain:
    """Return the chain of one reference plugin on ``n1`` that has its addresses from us."""
    ipam = {"ipam": {"type": "overlay"}, "socket": pair.socket_path("n1"), **more}
    return pair.chain("n1", {**plugin, **ipam})


def meets_soon(client: Netns, server: Netns, target: IPAddress) -> None:
    """Wait until a pod is reached: these plugins come back before IPv6 has looked for doubles."""
    eventually(lambda: meets(client.name, server.name, target), timeout_s=20, what=f"{target}")


def nothing_is_held(pair: Pair) -> None:
    assert pair.held("n1") == []
    names = [link["ifname"] for link in pair.links("n1", "type", "veth")]
    assert [name for name in names if name.startswith(("veth", "opod"))] == []


@pytest.mark.parametrize("plugin", ROUTED)
def test_pod_is_reached_from_the_other_node(
    pair: Pair, peer: Netns, plugin: dict[str, Any]
) -> None:
    chain = under(pair, plugin)
    pods = [pair.pod() for _ in range(2)]
    places = [place_of(pod, f"c{number}") for number, pod in enumerate(pods)]
    given = [addresses(chain.add(place)) for place in places]
    held = {address for one in pair.held("n1") for address in one["addresses"]}
    assert held == {str(address) for one in given for address in one.values()}
    (other,) = pair.held("n2")
    theirs = addresses({"ips": [{"address": a} for a in other["addresses"]]})
    for family in FAMILIES:
        first, second = given[0][family], given[1][family]
        meets_soon(peer, pods[0], first)
        assert meets(pods[0].name, pods[1].name, second) == str(first)
        assert meets(pods[1].name, peer.name, theirs[family]) == str(second)
    for place in places:
        chain.check(place)
        chain.delete(place)
    nothing_is_held(pair)
    assert "eth0" not in pods[0].ip("link")


def test_macvlan_has_its_addresses_from_the_lease(pair: Pair) -> None:
    chain = under(pair, MACVLAN)
    pods = [pair.pod() for _ in range(2)]
    places = [place_of(pod, f"m{number}") for number, pod in enumerate(pods)]
    given = [addresses(chain.add(place)) for place in places]
    subnet = ip_interface(pair.subnet_variables("n1")["FLANNEL_SUBNET"]).network
    for family in FAMILIES:
        meets_soon(pods[0], pods[1], given[1][family])
        assert given[0][family] != given[1][family]
    assert all(one[FAMILIES[0]] in subnet for one in given)
    for place in places:
        chain.check(place)
        chain.delete(place)
    nothing_is_held(pair)


def test_address_is_free_again_when_the_plugin_fails(pair: Pair) -> None:
    chain = under(pair, {**BRIDGE, "vlan": 70000})
    pod = pair.pod()
    with pytest.raises(ChainError):
        chain.add(place_of(pod, "failed"))
    late = under(pair, {**MACVLAN, "master": "no-such-link"})
    with pytest.raises(ChainError):
        late.add(place_of(pod, "failed"))
    assert pair.held("n1") == []


def test_plugin_is_told_of_an_address_in_use(pair: Pair) -> None:
    """The error is the plugin's own word for ours, code and all."""
    chain = under(pair, PTP)
    pods = [pair.pod() for _ in range(2)]
    first = place_of(pods[0], "first")
    given = addresses(chain.add(first))
    wanted = ",".join(map(str, given.values()))
    with pytest.raises(ChainError) as caught:
        chain.add(place_of(pods[1], "second", args=f"IgnoreUnknown=1;IP={wanted}"))
    assert "is in use" in json.dumps(caught.value.document)
    assert "eth0" not in pods[1].ip("link")
    chain.delete(first)
    nothing_is_held(pair)


def test_default_route_is_left_out_where_it_is_not_wanted(pair: Pair) -> None:
    chain = under(pair, PTP, ipam={"type": "overlay", "routes": [{"dst": "10.244.0.0/16"}]})
    pod = pair.pod()
    place = place_of(pod, "narrow")
    chain.add(place)
    assert pod.ip_json("route", "show", "default") == []
    assert "10.244.0.0/16" in pod.ip("route")
    chain.delete(place)
    nothing_is_held(pair)
