"""A cluster whose nodes a test puts there, and a store that works on it."""

from pathlib import Path
from typing import Any

from overlay.model.lease import LeaseAttributes
from overlay.store.kube import KubeLeaseStore
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_watch import Pace
from tests.kube.api_server import ApiServer
from tests.kube.objects import Object, Place

NODES = Place("nodes")
STEM = "flannel.alpha.coreos.com/"
QUICK = Pace(page=4, idle_s=5.0, backoff_s=(0.05, 0.2))


def node(name: str, *pod_cidrs: str, **annotations: str) -> Object:
    """Return a Node as a kubelet registers it and the controller manager completes it."""
    spec: Object = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
    meta: Object = {"name": name}
    if annotations:
        meta["annotations"] = {STEM + k.replace("_", "-"): v for k, v in annotations.items()}
    return {"metadata": meta, "spec": spec, "status": {"conditions": [{"type": "Ready"}]}}


def flannels(address: str, mac: str, vni: int = 1) -> dict[str, str]:
    """Return what flannel v0.28 writes for a node on VXLAN, to the letter."""
    return {
        "backend_data": f'{{"VNI":{vni},"VtepMAC":"{mac}"}}',
        "backend_type": "vxlan",
        "kube_subnet_manager": "true",
        "public_ip": address,
    }


class PlantedCluster(KubeLeaseStore):
    """A store of node-1 whose cluster a test can write into, as others would."""

    def __init__(self, api: ApiServer, place: Path) -> None:
        self.api = api
        self.config_file = place / "net-conf.json"
        access = KubeAccess(
            "node-1",
            kubeconfig=str(api.kubeconfig(place / "kubeconfig")),
            net_config_path=self.config_file,
            namespace="overlay",
            timeout_s=2.0,
        )
        super().__init__(access, pace=QUICK)

    def add_node(self, number: int, *pod_cidrs: str, **annotations: str) -> Object:
        return self.api.objects.create(NODES, node(f"node-{number}", *pod_cidrs, **annotations))

    def annotations(self, number: int) -> dict[str, str]:
        """Return a node's annotations by their short names."""
        found = self.api.objects.get(NODES, f"node-{number}")["metadata"].get("annotations", {})
        return {name.removeprefix(STEM): value for name, value in found.items()}

    def annotate(self, number: int, **annotations: str | None) -> None:
        """Write annotations as somebody else would; None removes one."""
        found = self.api.objects.get(NODES, f"node-{number}")
        now: dict[str, Any] = dict(found["metadata"].get("annotations", {}))
        for key, value in annotations.items():
            name = STEM + key.replace("_", "-")
            if value is None:
                now.pop(name, None)
            else:
                now[name] = value
        meta = {**found["metadata"], "annotations": now}
        self.api.objects.replace(NODES, f"node-{number}", {**found, "metadata": meta}, None)

    def annotate_as_flannel(self, number: int, attributes: LeaseAttributes) -> None:
        """Write what flannel would for a node with these attributes."""
        mac = next(iter(attributes.backend_data.values()))["VtepMAC"]
        self.annotate(number, **flannels(str(next(iter(attributes.public.values()))), mac))
