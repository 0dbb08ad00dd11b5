"""The mesh's metrics; those with a peer's name are for the measured ones, at most 100."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from overlay.agent.mesh import WAYS, Mesh
from overlay.agent.mesh_flags import MeshFlags
from overlay.agent.mesh_peers import Peer
from overlay.agent.mesh_report import needed_bytes
from overlay.agent.status import Snapshot, Status
from overlay.model.node import NodeIdentity

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def mesh_families(mesh: Mesh, snapshot: Snapshot) -> "Iterable[Metric]":
    """Return the metrics as of now."""
    with mesh.lock:
        names = Counter(name for _, name in mesh.peers.names())
        return [*_counted(mesh), *_by_peer(mesh, names), *_mtu(mesh, snapshot, names)]


def idle_families() -> "Iterable[Metric]":
    """Return the metrics of an agent that has measured nothing yet."""
    from overlay.store.memory import MemoryLeaseStore  # not for an agent, which has another

    idle = Mesh(MeshFlags(), NodeIdentity("", ""), Status(), MemoryLeaseStore())
    return mesh_families(idle, Snapshot())


def _counted(mesh: Mesh) -> "Iterator[Metric]":
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    text = "Round trips of probes to peers, both agents' part of it included."
    rtt = HistogramMetricFamily("overlay_mesh_rtt_seconds", text, labels=["path"])
    text = "Probes that got no echo."
    lost = CounterMetricFamily("overlay_mesh_probes_lost", text, labels=["path"])
    for way in WAYS:
        label, histogram = [way.name.lower()], mesh.histograms[way]
        rtt.add_metric(label, histogram.cumulative(), histogram.sum_s)
        lost.add_metric(label, mesh.lost[way])
    text = "Datagrams to the probe port that were not answered."
    refused = CounterMetricFamily("overlay_mesh_refused", text, labels=["reason"])
    for reason, count in mesh.refused.items():
        refused.add_metric([reason], count)
    yield from (rtt, lost, refused)


def _by_peer(mesh: Mesh, names: "Counter[str]") -> "Iterator[Metric]":
    from prometheus_client.core import GaugeMetricFamily

    labels = ["peer", "path"]
    text = "Average of the last round trips to a peer."
    rtt = GaugeMetricFamily("overlay_mesh_peer_rtt_seconds", text, labels=labels)
    text = "Share of the last 60 probes to a peer that got no echo."
    loss = GaugeMetricFamily("overlay_mesh_peer_loss_ratio", text, labels=labels)
    for (tag, way), record in mesh.records.items():
        label = [_named(mesh.peers[tag], names), way.name.lower()]
        if record.average_s is not None:
            rtt.add_metric(label, record.average_s)
        if record.loss is not None:
            loss.add_metric(label, record.loss)
    yield GaugeMetricFamily(
        "overlay_mesh_peers_measured", "Peers that are probed.", value=len(mesh.measured)
    )
    yield from (rtt, loss)


def _mtu(mesh: Mesh, snapshot: Snapshot, names: "Counter[str]") -> "Iterator[Metric]":
    from prometheus_client.core import GaugeMetricFamily

    text = "Largest packet that the underlay carries to a peer and back."
    found = GaugeMetricFamily("overlay_mesh_path_mtu_bytes", text, labels=["peer"])
    needed, small = needed_bytes(snapshot.site), 0
    for tag, result in mesh.mtus.results.items():
        if result.least is not None and tag in mesh.peers:
            small += result.least < needed
            if tag in mesh.measured:
                found.add_metric([_named(mesh.peers[tag], names)], result.least)
    yield found
    text = "Peers whose path carries less than this node's devices send."
    yield GaugeMetricFamily("overlay_mesh_path_mtu_too_small_peers", text, value=small)


def _named(peer: Peer, names: "Counter[str]") -> str:
    """Return the peer's name, with its subnet where another one has the same."""
    return peer.name if names[peer.name] == 1 else f"{peer.name} {peer.subnet}"
