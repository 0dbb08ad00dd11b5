"""Tables of leases, and what etcd and Kubernetes say of one: for tests of what follows from it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightkube.resources.core_v1 import Node

from overlay.model.lease import LeaseView, parse_attributes
from overlay.model.network import parse_network_config
from overlay.store import kube_lease
from overlay.store.etcd_table import KeyValue, LeaseReader, LeaseTable, Listing
from overlay.store.kube_client import Kind
from overlay.store.kube_net_config import NetConfig
from overlay.store.kube_node import NodeFacts, NodeReader, annotations_for
from overlay.store.kube_table import NodeTable
from overlay.store.kube_watch import Found, read_object

CONFIG = '{"Network":"10.0.0.0/8","SubnetMin":"10.1.0.0"}'


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the lease of node ``number``: it goes where there is no ``value``."""

    number: int
    revision: int
    value: bytes | None

    @property
    def network(self) -> str:
        return f"10.{1 + self.number // 256}.{self.number % 256}.0"


def change_of(number: int, revision: int, mac: str = "02", port: int = 1) -> Change:
    tail = f"00:00:{number // 256:02x}:{number % 256:02x}:01"
    public = f"172.{16 + number // 65536}.{number // 256 % 256}.{number % 256}"
    value = (
        f'{{"PublicIP":"{public}","BackendType":"vxlan","BackendData":{{"VNI":{port},'
        f'"VtepMAC":"{mac}:{tail}"}},"Overlay":{{"NodeID":"n-{number}","NodeName":"x{number}"}}}}'
    )
    return Change(number, revision, value.encode())


class Source(Protocol):
    """A store's table of leases, and what it is told."""

    def list(self, changes: Sequence[Change]) -> None:
        """Take over all there is."""

    def told(self, change: Change) -> Any:
        """Return what the store's server says of a change."""

    def take(self, told: Any) -> None:
        """Take that in."""

    def view(self) -> LeaseView:
        """Return all there is."""


class EtcdSource:
    """Keys of etcd."""

    ROOT = "/f/"

    def __init__(self) -> None:
        self.table = LeaseTable(LeaseReader(self.ROOT))
        self.view = self.table.view

    def list(self, changes: Sequence[Change]) -> None:
        self.table.replace(Listing(len(changes), 1, tuple(map(self.told, changes))))

    def told(self, change: Change) -> KeyValue:
        key = f"{self.ROOT}subnets/{change.network}-24".encode()
        return KeyValue(key, change.value, change.number + 1, change.revision, change.revision)

    def take(self, told: Any) -> None:
        self.table.apply([told])


class KubeSource:
    """Nodes of Kubernetes, as JSON."""

    KIND = Kind(Node, "nodes", NodeReader("flannel.alpha.coreos.com/").read)

    def __init__(self) -> None:
        self.table = NodeTable(kube_lease.LeaseReader("own"), "own")
        self.table.set_config(NetConfig(parse_network_config(CONFIG)))
        self.objects: dict[str, Found[NodeFacts]] = {}
        self.view = self.table.view

    def list(self, changes: Sequence[Change]) -> None:
        for each in changes:
            name, raw = self.told(each)
            self.objects[name] = read_object(self.KIND, raw)
        self.table.take(self.objects, len(changes), None)

    def told(self, change: Change) -> tuple[str, bytes]:
        name = f"x{change.number}"
        if change.value is None:
            return name, b""
        attributes = parse_attributes(name, change.value)
        facts = NodeFacts(name, 0, (), {})
        written = annotations_for(attributes, facts, answers=change.revision)
        notes = {f"flannel.alpha.coreos.com/{k}": v for k, v in written.items() if v is not None}
        meta = {"name": name, "uid": name, "resourceVersion": f"{change.revision}"}
        spec = {"podCIDRs": [f"{change.network}/24"]}
        return name, json.dumps({"metadata": {**meta, "annotations": notes}, "spec": spec}).encode()

    def take(self, told: Any) -> None:
        name, raw = told
        if raw:
            self.objects[name] = read_object(self.KIND, raw, self.objects)
        else:
            del self.objects[name]
        assert self.table.take(self.objects, self.table.revision + 1, frozenset({name}))
