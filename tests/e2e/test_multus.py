"""Under Multus: several networks of ours in one pod, and a result that somebody edited.

Multus itself asks a Kubernetes API and comes in no package of Debian 12 or
PyPI. What reaches a delegate's plugin is imitated here to the letter
(multus-cni 4.x, ``pkg/multus/multus.go`` and ``pkg/netutils/netutils.go``):
delegates in order, DEL in reverse, CNI_ARGS, and default routes moved by
hand and in the kept result.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from overlay.model.address import FAMILIES, Family, IPAddress
from tests.e2e.chains import REFERENCE_PLUGINS, Attachment, Chain, ChainError
from tests.e2e.pair import Pair, addresses, lab_of_two, meets, place_of
from tests.kernel.netns import Netns, host_unchanged

pytestmark = pytest.mark.e2e

FOLDERS: Final = (REFERENCE_PLUGINS, Path("/opt/cni/bin"))
DEFAULTS: Final = ("0.0.0.0/0", "::/0")
GATEWAYS: Final = {Family.IPV4: "169.254.1.1", Family.IPV6: "fe80::1"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with host_unchanged(), lab_of_two() as lab:
        pair = Pair(lab, tmp_path_factory.mktemp("multus"))
        yield pair
        pair.close()


@pytest.fixture
def peer(pair: Pair) -> Iterator[tuple[Netns, dict[Family, IPAddress]]]:
    """A pod on the other node with one interface."""
    chain = pair.chain("n2", pair.own("n2"))
    pod = pair.pod()
    place = place_of(pod, "peer")
    yield pod, addresses(chain.add(place))
    chain.delete(place)


class Multus:
    """One pod on ``n1``: eth0 on the cluster's network, net1 on a second one."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.pod = pair, pair.pod()
        self._container = f"{uuid4().hex}{uuid4().hex}"
        self._uid = str(uuid4())
        able = {"capabilities": {"mac": True, "ips": True}}
        self.delegates = [
            (pair.chain("n1", pair.own("n1", **able), name="cluster"), self.place("eth0")),
            (pair.chain("n1", pair.own("n1", **able), name="storage"), self.place("net1")),
        ]

    def place(self, interface: str, more: str = "", **capabilities: Any) -> Attachment:
        args = (
            "IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;"
            f"K8S_POD_INFRA_CONTAINER_ID={self._container};K8S_POD_UID={self._uid}{more}"
        )
        path = str(self.pod.path)
        return Attachment(self._container, path, interface, args, capabilities)

    def add(self) -> list[dict[Family, IPAddress]]:
        return [addresses(chain.add(place)) for chain, place in self.delegates]

    def check(self) -> None:
        for chain, place in self.delegates:
            chain.check(place)

    def delete(self) -> None:
        for chain, place in reversed(self.delegates):
            chain.delete(place)

    def filter_default_routes(self, number: int) -> None:
        """Take an interface's default routes away, in the pod and in the kept result."""
        chain, place = self.delegates[number]
        for family in ("-4", "-6"):
            self.pod.ip(family, "route", "del", "default", "dev", place.interface)
        result = copy.deepcopy(chain.results[place])
        result["routes"] = [r for r in result["routes"] if r["dst"] not in DEFAULTS]
        chain.results[place] = result

    def set_default_routes(self, number: int) -> None:
        """Give an interface the default routes: ``"default-route"`` of its annotation."""
        chain, place = self.delegates[number]
        result = copy.deepcopy(chain.results[place])
        for destination, (family, gateway) in zip(DEFAULTS, GATEWAYS.items(), strict=True):
            version = f"-{family.value}"
            self.pod.ip(version, "route", "add", "default", "via", gateway, "dev", place.interface)
            result["routes"].append({"dst": destination, "gw": gateway})
        chain.results[place] = result


@pytest.fixture
def multus(pair: Pair) -> Iterator[Multus]:
    multus = Multus(pair)
    yield multus
    multus.delete()
    assert pair.held("n1") == []
    links = [link["ifname"] for link in pair.links("n1")]
    assert [name for name in links if name.startswith("opod")] == []
    assert [link["ifname"] for link in multus.pod.ip_json("link")] == ["lo"]


def both_ways(
    multus: Multus, given: dict[Family, IPAddress], peer: tuple[Netns, dict[Family, IPAddress]]
) -> None:
    """Assert that an interface's addresses are reached, from the other node and from the own."""
    pod, theirs = peer
    for family in FAMILIES:
        assert meets(pod.name, multus.pod.name, given[family]) == str(theirs[family])
        assert meets(multus.pair.namespace("n1"), multus.pod.name, given[family]) is not None


def test_two_networks_of_one_pod(
    multus: Multus, peer: tuple[Netns, dict[Family, IPAddress]]
) -> None:
    first, second = multus.add()
    held = multus.pair.held("n1")
    assert {one["network"] for one in held} == {"cluster", "storage"}
    assert {one["arguments"]["K8S_POD_NAME"] for one in held} == {"web-0"}
    for given in (first, second):
        both_ways(multus, given, peer)
    for family, target in peer[1].items():
        assert meets(multus.pod.name, peer[0].name, target) == str(first[family])
    multus.check()


def test_default_route_moves_to_the_second_network(
    multus: Multus, peer: tuple[Netns, dict[Family, IPAddress]]
) -> None:
    """The gateway is one and the same on both: a route to it must be there by each interface."""
    chain, place = multus.delegates[0]
    first = addresses(chain.add(place))
    multus.filter_default_routes(0)
    chain, place = multus.delegates[1]
    second = addresses(chain.add(place))
    multus.filter_default_routes(1)
    multus.set_default_routes(1)
    for family, target in peer[1].items():
        assert meets(multus.pod.name, peer[0].name, target) == str(second[family])
    for given in (first, second):
        both_ways(multus, given, peer)
    multus.check()


@pytest.mark.skipif(
    not any(os.access(folder / "multus", os.X_OK) for folder in FOLDERS),
    reason="Multus itself is not here: no package of Debian 12 or PyPI has it; the tests beside "
    "this one give our plugin what its source says that it gives",
)
def test_multus_itself(pair: Pair, tmp_path: Path) -> None:
    """Without a Kubernetes API it serves the delegates of its own configuration alone."""
    delegates = [
        {"cniVersion": "1.0.0", "name": name, **pair.own("n1")} for name in ("cluster", "storage")
    ]
    folders = {"cniDir": str(tmp_path), "binDir": str(pair.path[0]), "confDir": str(tmp_path)}
    plugin = {"type": "multus", **folders, "delegates": delegates}
    conflist = {"cniVersion": "1.0.0", "name": "multus", "plugins": [plugin]}
    chain = Chain(conflist, pair.namespace("n1"), (*pair.path, *FOLDERS))
    pod = pair.pod()
    place = place_of(pod, "real")
    chain.add(place)
    assert {one["network"] for one in pair.held("n1")} == {"cluster", "storage"}
    assert {link["ifname"] for link in pod.ip_json("link")} == {"lo", "eth0", "net1"}
    chain.delete(place)
    assert pair.held("n1") == []


def test_check_goes_by_the_edited_result(multus: Multus) -> None:
    multus.add()
    chain, place = multus.delegates[0]
    whole = chain.results[place]
    multus.filter_default_routes(0)
    multus.check()
    chain.results[place] = whole
    with pytest.raises(ChainError, match=r"route 0\.0\.0\.0/0 via 169\.254\.1\.1 is missing"):
        chain.check(place)


def test_addresses_and_mac_of_the_annotation(multus: Multus) -> None:
    """Multus says them twice: as IP= and MAC= of CNI_ARGS, and in runtimeConfig."""
    subnets = multus.pair.subnet_variables("n1")
    wanted = [
        subnets["FLANNEL_SUBNET"].replace(".1/", ".77/"),
        subnets["FLANNEL_IPV6_SUBNET"].replace("::1/", "::4d/"),
    ]
    mac = "02:00:00:00:77:77"
    bare = ",".join(text.split("/")[0] for text in wanted)
    place = multus.place("net1", f";MAC={mac};IP={bare}", mac=mac, ips=wanted)
    chain = multus.delegates[1][0]
    multus.delegates[1] = (chain, place)
    _, second = multus.add()
    assert ",".join(str(second[family]) for family in FAMILIES) == bare
    assert multus.pod.ip_json("link", "show", "net1")[0]["address"] == mac


def test_failed_delegate_is_taken_back_with_all_before_it(multus: Multus) -> None:
    """Multus asks for DEL of every delegate that it asked for ADD, the failed one too."""
    chain, place = multus.delegates[0]
    chain.add(place)
    wrong = multus.place("net1", ";IP=192.0.2.77")
    multus.delegates[1] = (multus.delegates[1][0], wrong)
    with pytest.raises(ChainError, match="is not one of this node's"):
        multus.delegates[1][0].add(wrong)
    multus.delete()
    assert multus.pair.held("n1") == []
