"""Metrics by Prometheus' conventions, made from the snapshot when somebody asks."""

import time
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING

from overlay import __version__
from overlay.agent.status import Snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def render_metrics(snapshot: Snapshot, stranded_pods: int) -> tuple[str, str]:
    """Return content type and text of ``/metrics``."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class _Snapshot(Collector):
        def collect(self) -> "Iterable[Metric]":
            return list(_families(snapshot, stranded_pods))

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot())
    ProcessCollector(registry=registry)
    text = generate_latest(registry).decode()
    return "text/plain; version=0.0.4; charset=utf-8", text


def _families(snapshot: Snapshot, stranded_pods: int) -> "Iterable[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    def gauge(name: str, text: str, value: float) -> "Metric":
        return GaugeMetricFamily(f"overlay_{name}", text, value=value)

    def counter(name: str, text: str, value: float) -> "Metric":
        return CounterMetricFamily(f"overlay_{name}", text, value=value)

    view, counters = snapshot.view, snapshot.counters
    yield InfoMetricFamily("overlay_build", "Version of the agent.", {"version": __version__})
    yield gauge("ready", "1 when a lease is held and the kernel is in step.", snapshot.is_ready)
    connected = snapshot.is_store_connected
    yield gauge("store_connected", "1 while the lease store answers.", connected)
    yield gauge("peers", "Leases that are peers.", snapshot.peers)
    yield gauge("leases", "Leases in the store.", len(view.leases) if view else 0)
    skipped = len(view.skipped) if view else 0
    yield gauge("lease_keys_skipped", "Keys in the store that could not be read.", skipped)
    yield gauge("lease_problems", "Leases that cannot be peers.", len(snapshot.problems))
    yield gauge("stranded_pods", "Pods without an address of the node's subnet.", stranded_pods)
    yield gauge("store_revision", "Revision of the last view.", view.revision if view else 0)
    yield gauge("kernel_errors", "What the kernel refused last.", len(snapshot.kernel_errors))
    yield gauge("mtu_bytes", "Largest packet that a pod may send.", snapshot.mtu)
    yield counter("reconcile_passes", "Passes over the kernel.", counters.passes)
    yield counter("kernel_ops", "Kernel objects set or deleted.", counters.ops)
    yield counter("kernel_op_failures", "Those that were refused.", counters.op_failures)
    yield counter("kernel_repairs", "Objects put right that others had changed.", counters.repairs)
    yield counter("ruleset_applies", "nftables transactions.", counters.ruleset_applies)
    yield counter("store_troubles", "Times that the store failed.", counters.store_troubles)
    yield gauge("reconcile_last_seconds", "Length of the last pass.", snapshot.last_pass_s)
    held, now = snapshot.held, time.monotonic()
    left_s = held.seconds_left(now) if held else 0.0
    yield gauge(
        "peers_held", "Peers that vanished together and are held.", len(held.leases) if held else 0
    )
    yield gauge(
        "peers_held_remaining_seconds",
        "Until the held peers are let go; +Inf where an operator said to keep them.",
        inf if left_s is None else left_s,
    )
    text = "Times that too many peers vanished at once."
    yield counter("mass_deletions", text, counters.mass_deletions)
    fights = len(snapshot.contested(now))
    yield gauge("contested_objects", "Objects that somebody changes again and again.", fights)
    text = "Times that the kernel told more than could be read."
    yield counter("kernel_notice_losses", text, counters.notice_losses)
