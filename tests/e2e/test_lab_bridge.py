"""A whole fabric whose pods are on bridges: every flow is as it is for routed pods."""

import json
import subprocess
import uuid
from typing import Any

import pytest

from overlay.lab.fabric import Lab, running
from overlay.lab.pods import plugin_command
from overlay.lab.topology import LabOptions, PodPlace
from overlay.model.address import FAMILIES
from overlay.model.egress import EgressMode
from tests.kernel.netns import host_unchanged

pytestmark = pytest.mark.e2e


def execute(lab: Lab, place: PodPlace, command: str, mode: str) -> Any:
    """Execute the plugin on a pod's node; return what it printed, parsed."""
    config = {
        "cniVersion": "1.1.0",
        "name": "lab",
        "type": "overlay",
        "mode": mode,
        "socket": str(lab.dir.node(place.node) / "cni.sock"),
    }
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": place.name,
        "CNI_NETNS": f"/run/netns/{place.namespace}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    words = ["env", *(f"{name}={value}" for name, value in variables.items()), *plugin_command()]
    done = subprocess.run(
        lab.command(place.node, words), input=json.dumps(config).encode(), capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout) if done.stdout else None


@pytest.mark.parametrize("on_bridge", ["all", "one on each node"])
@pytest.mark.parametrize("egress", [EgressMode.ISLAND, EgressMode.ISOLATED])
def test_every_flow_is_as_it_must_be(egress: EgressMode, on_bridge: str) -> None:
    name = f"t-{uuid.uuid4().hex[:8]}"
    options = LabOptions(name=name, nodes=2, pods=2, families=FAMILIES, egress=egress)
    with host_unchanged(), running(options) as lab:
        seen: set[str] = set()
        for place in lab.topology.pods:
            if on_bridge != "all" and place.node in seen:
                continue
            seen.add(place.node)
            execute(lab, place, "DEL", "ptp")
            result = execute(lab, place, "ADD", "bridge")
            kept = lab.dir.node(place.node) / f"{place.name}.cni.json"
            kept.write_text(json.dumps(result))
        results = lab.test()
        wrong = [
            f"{r.flow.source.name} to {r.flow.target.name} {r.flow.family}: {'; '.join(r.problems)}"
            for r in results
            if not r.is_expected
        ]
        assert wrong == []
        assert len(results) > 40
