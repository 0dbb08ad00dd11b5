"""What the mesh found, as documents: the calls ``mesh`` and ``mtu`` of the node's socket."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from overlay.agent.mesh import WAYS, Mesh
from overlay.agent.mesh_peers import Peer
from overlay.agent.status import Snapshot, Status
from overlay.mesh.path_mtu import PathMtu
from overlay.mesh.record import Record
from overlay.mesh.wire import Row
from overlay.model.address import Family
from overlay.plan.planner import Site

_MTU_WAIT_S: Final = 10.0  # for a search; a path that swallows much takes four seconds


def mesh_calls(mesh: Mesh, status: Status) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Return what the agent answers, by name."""

    def show_mtu(given: Mapping[str, Any]) -> dict[str, Any]:
        # What is known is there at once; --now asks every peer anew, and waits.
        if given.get("now") is True:
            mesh.search_mtu(_MTU_WAIT_S)
        elif not mesh.mtus.searches:
            mesh.ask_mtu()
        with mesh.lock:
            return mtu_document(mesh, status.get())

    def show_mesh(_given: Mapping[str, Any]) -> dict[str, Any]:
        with mesh.lock:
            return mesh_document(mesh)

    return {"mesh": show_mesh, "mtu": show_mtu}


def mesh_document(mesh: Mesh) -> dict[str, Any]:
    """Return this node's peers, and all that is known of who reaches whom. Hold the lock."""
    names = {mesh.own: mesh.node.name, **dict(mesh.peers.names())}
    measured = [mesh.peers[tag] for tag in mesh.measured]
    links = [_link(mesh.node.name, names[tag], mesh.row(tag)) for tag in mesh.measured]
    for sender, row in mesh.told.rows():
        if row.tag in names and row.tag != sender:
            links.append(_link(names[sender], names[row.tag], row))
    return {
        "node": mesh.node.name,
        "probe_port": mesh.flags.port,
        "interval_s": mesh.flags.interval_s,
        "error": mesh.error,
        "peers": [_peer(mesh, peer) for peer in sorted(measured, key=lambda peer: peer.name)],
        "not_measured": len(mesh.peers) - len(mesh.measured),
        "links": links,
        "refused": dict(mesh.refused),
    }


def mtu_document(mesh: Mesh, snapshot: Snapshot) -> dict[str, Any]:
    """Return each peer's path MTU beside what the devices send. Hold the lock."""
    needed = needed_bytes(snapshot.site)
    is_first = bool(mesh.peers) and mesh.error is None and not mesh.mtus.searches
    is_searching = is_first or mesh.mtus.is_busy
    age_s = mesh.mtu_age_s()
    rows = []
    for tag, peer in mesh.peers.items():
        found = mesh.mtus.results.get(tag, PathMtu(None, None))
        rows.append(
            {
                "node": peer.name,
                "public": str(peer.underlay),
                "out": found.out,
                "back": found.back,
                "fits": None if found.least is None else found.least >= needed,
            }
        )
    return {
        "underlay_mtu": mesh.ceiling(snapshot) or None,
        "device_mtu": snapshot.mtu or None,
        "needed": needed or None,
        "clamp": mesh.flags.clamp,
        "searching": is_searching,
        "age_s": None if age_s is None else round(age_s, 1),
        "error": mesh.error,
        "peers": rows,
    }


def needed_bytes(site: Site | None) -> int:
    """Return the largest packet that this node puts on the underlay for a pod, in bytes."""
    if site is None:
        return 0
    overhead = 0
    if site.backend.tunnel is not None:
        overhead = max(f.encapsulation_overhead for f in site.config.families)
    return site.backend.mtu(site.underlay) + overhead


def _peer(mesh: Mesh, peer: Peer) -> dict[str, Any]:
    overlay, underlay = (mesh.records.get((peer.tag, way)) for way in WAYS)
    found = mesh.mtus.results.get(peer.tag)
    return {
        "node": peer.name,
        "subnet": peer.subnet,
        "public": str(peer.underlay),
        "family": str(Family(peer.family)),
        "overlay": _record(overlay) if peer.overlay is not None else None,
        "underlay": _record(underlay),
        "path_mtu": found.least if found is not None else None,
    }


def _record(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "rtt_ms": _ms(record.average_s),
        "last_ms": _ms(record.last_s),
        "least_ms": _ms(record.least_s),
        "loss": record.loss,
        "silent": record.is_silent,
        "sent": record.sent,
        "lost": record.lost,
    }


def _link(origin: str, target: str, row: Row) -> dict[str, Any]:
    return {
        "from": origin,
        "to": target,
        "overlay_ms": _ms(row.overlay_s),
        "overlay_loss": row.overlay_loss,
        "underlay_ms": _ms(row.underlay_s),
        "underlay_loss": row.underlay_loss,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
