"""Under flannel's own CNI plugin, which takes the node's subnet from our ``subnet.env``."""

import os
import sys
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

import pytest

from overlay.model.address import FAMILIES, Family
from tests.e2e import flannel_cni
from tests.e2e.chains import REFERENCE_PLUGINS, Chain
from tests.e2e.pair import Pair, addresses, lab_of_two, meets, needs_reference_plugins, place_of
from tests.kernel.netns import eventually, host_unchanged

pytestmark = [pytest.mark.e2e, needs_reference_plugins]

FOLDERS: Final = (REFERENCE_PLUGINS, Path("/opt/cni/bin"))
NOT_HERE: Final = (
    "flannel's own binary is not here: the reference plugins left it out with 1.0 and no package "
    "of Debian 12 or PyPI has it; the test beside this one does what its source says"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with host_unchanged(), lab_of_two() as lab:
        pair = Pair(lab, tmp_path_factory.mktemp("flannel"))
        yield pair
        pair.close()


@pytest.fixture(params=["binary", "by its source"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return where the plugin ``flannel`` is: a real one, or what does the same."""
    if request.param == "binary":
        for place in FOLDERS:
            if os.access(place / "flannel", os.X_OK):
                return place
        pytest.skip(NOT_HERE)
    program = tmp_path / "flannel"
    program.write_text(f"#!{sys.executable} -ISE\n{Path(flannel_cni.__file__).read_text()}")
    program.chmod(0o755)
    return tmp_path


def test_pod_of_flannels_plugin_and_one_of_ours_meet(
    pair: Pair, folder: Path, tmp_path: Path
) -> None:
    theirs = Chain(
        {
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "plugins": [
                {
                    "type": "flannel",
                    "subnetFile": str(pair.lab.dir.subnet_file("n1")),
                    "dataDir": str(tmp_path / "state"),
                    "ipam": {"dataDir": str(tmp_path / "addresses")},
                    "delegate": {"hairpinMode": True, "isDefaultGateway": True},
                },
                {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
            ],
        },
        pair.namespace("n1"),
        (folder, REFERENCE_PLUGINS),
    )
    ours = pair.chain("n2", pair.own("n2"))
    pods = [pair.pod() for _ in range(2)]
    there = place_of(pods[1], "ours")
    ports = {"portMappings": [{"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"}]}
    here = place_of(pods[0], "theirs", capabilities=ports)
    mine, other = addresses(theirs.add(here)), addresses(ours.add(there))
    variables = pair.subnet_variables("n1")
    assert mine[Family.IPV4] in ip_interface(variables["FLANNEL_SUBNET"]).network
    assert mine[Family.IPV6] in ip_interface(variables["FLANNEL_IPV6_SUBNET"]).network
    assert pods[0].ip_json("link", "show", "eth0")[0]["mtu"] == int(variables["FLANNEL_MTU"])
    for family in FAMILIES:
        target = other[family]
        eventually(
            lambda f=family, t=target: (  # type: ignore[misc]
                meets(pods[0].name, pods[1].name, t) == str(mine[f])
            ),
            timeout_s=20,
            what=f"{target}, from the pod of flannel's plugin by its own address",
        )
        assert meets(pods[1].name, pods[0].name, mine[family]) == str(target)
        assert meets(pods[1].name, pods[0].name, pair.address("n1", family), 8081) is not None
    theirs.delete(here)
    theirs.delete(here)
    ours.delete(there)
    assert "eth0" not in pods[0].ip("link")
    assert list((tmp_path / "state").iterdir()) == []
    left = [p.name for p in (tmp_path / "addresses").rglob("*") if p.name[0].isdigit()]
    assert left == [], "host-local keeps no address"
