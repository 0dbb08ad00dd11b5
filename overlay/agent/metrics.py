"""Metrics by Prometheus' conventions, made from the agent's status when somebody asks.

What is not the mesh's is named here and nowhere else: docs/metrics.md is made of it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

from overlay import __version__
from overlay.agent.clock import boot_clock
from overlay.agent.status import Snapshot, Status
from overlay.agent.timings import BOUNDS_S, Histogram
from overlay.model.event import Kind

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    More = Callable[[], Iterable[Metric]]


@dataclass(frozen=True, slots=True)
class Described:
    """One metric as a reader of ``/metrics`` meets it."""

    name: str
    type: str
    labels: tuple[str, ...]
    text: str


# What names others; a store's reader may know it, and not everybody who may connect.
_NAMES: Final = frozenset({"peer", "policy"})


def render_metrics(
    status: Status, stranded_pods: int, more: "More" = lambda: (), *, names: bool = True
) -> tuple[str, str]:
    """Return content type and text of ``/metrics``; ``more`` gives those of other parts.

    Without ``names`` those are left out that name a peer or a policy.
    """
    from prometheus_client import generate_latest

    def told() -> "Iterable[Metric]":
        return (family for family in more() if names or not _NAMES & set(_labels(family)))

    text = generate_latest(_registry(status, stranded_pods, told)).decode()
    return "text/plain; version=0.0.4; charset=utf-8", text


def described() -> list[Described]:
    """Return all metrics that there are, ours first."""
    from overlay.agent.mesh_metrics import idle_families
    from overlay.agent.policy_metrics import policy_families

    def beside() -> "Iterable[Metric]":
        return (*idle_families(), *policy_families(Status(), list))

    suffix = {"counter": "_total", "info": "_info"}
    return [
        Described(
            family.name + suffix.get(family.type, ""),
            family.type,
            _labels(family),
            family.documentation,
        )
        for family in _registry(Status(), 0, beside).collect()
    ]


def _labels(family: "Metric") -> tuple[str, ...]:
    named = {name for sample in family.samples for name in sample.labels}
    # A family that has no sample yet knows its labels all the same.
    return tuple(sorted((named | set(getattr(family, "_labelnames", ()))) - {"le"}))


def _registry(status: Status, stranded_pods: int, more: "More") -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.registry import Collector

    class _Agent(Collector):
        def collect(self) -> "Iterable[Metric]":
            yield from _snapshot(status.get(), stranded_pods)
            yield from _happened(status)
            yield from more()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Agent())
    ProcessCollector(registry=registry)
    return registry


def _gauge(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"overlay_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"overlay_{name}", text, value=value)


def _snapshot(snapshot: Snapshot, stranded_pods: int) -> "Iterator[Metric]":
    """Yield how things stand."""
    from prometheus_client.core import InfoMetricFamily

    view, held, now = snapshot.view, snapshot.held, time.monotonic()
    yield InfoMetricFamily("overlay_build", "Version of the agent.", {"version": __version__})
    yield _gauge("ready", "1 when a lease is held and the kernel is in step.", snapshot.is_ready)
    connected = snapshot.is_store_connected
    yield _gauge("store_connected", "1 while the lease store answers.", connected)
    yield _gauge("peers", "Leases that are peers.", snapshot.peers)
    yield _gauge("leases", "Leases in the store.", len(view.leases) if view else 0)
    skipped = len(view.skipped) if view else 0
    yield _gauge("lease_keys_skipped", "Keys in the store that could not be read.", skipped)
    yield _gauge("lease_problems", "Leases that cannot be peers.", len(snapshot.problems))
    yield _gauge("stranded_pods", "Pods without an address of the node's subnet.", stranded_pods)
    yield _gauge("store_revision", "Revision of the last view.", view.revision if view else 0)
    yield _gauge("kernel_errors", "What the kernel refused last.", len(snapshot.kernel_errors))
    yield _gauge("mtu_bytes", "Largest packet that a pod may send.", snapshot.mtu)
    yield _gauge("reconcile_last_seconds", "Length of the last pass.", snapshot.last_pass_s)
    yield _gauge(
        "lease_remaining_seconds",
        "Until the own lease ends unless it is renewed, 0 when it has; +Inf for one that does not.",
        max(0.0, snapshot.lease_ends - boot_clock()),
    )
    left_s = held.seconds_left(now) if held else 0.0
    kept = len(held.leases) if held else 0
    yield _gauge("peers_held", "Peers that vanished together and are held.", kept)
    yield _gauge(
        "peers_held_remaining_seconds",
        "Until the held peers are let go; +Inf where an operator said to keep them.",
        inf if left_s is None else left_s,
    )
    fights = len(snapshot.contested(now))
    yield _gauge("contested_objects", "Objects that somebody changes again and again.", fights)


def _happened(status: Status) -> "Iterator[Metric]":
    """Yield what happened since the start, and how long it took."""
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    counters, timings = status.get().counters, status.timings
    yield _counter("reconcile_passes", "Passes over the kernel.", counters.passes)
    yield _counter("kernel_ops", "Kernel objects set or deleted.", counters.ops)
    yield _counter(
        "kernel_op_failures", "Kernel objects that the kernel refused.", counters.op_failures
    )
    yield _counter("kernel_repairs", "Objects put right that others had changed.", counters.repairs)
    yield _counter("ruleset_applies", "nftables transactions.", counters.ruleset_applies)
    yield _counter("store_troubles", "Times that the store failed.", counters.store_troubles)
    text = "Times that too many peers vanished at once."
    yield _counter("mass_deletions", text, counters.mass_deletions)
    text = "Times that the kernel told more than could be read."
    yield _counter("kernel_notice_losses", text, counters.notice_losses)
    events = CounterMetricFamily(
        "overlay_events", "Events by kind, as `overlayctl events` shows them.", labels=["kind"]
    )
    seen = status.events.counts()
    for kind in Kind:
        events.add_metric([kind], seen.get(kind, 0))
    yield events
    passes = HistogramMetricFamily(
        "overlay_reconcile_duration_seconds", "Length of the passes over the kernel."
    )
    passes.add_metric([], *_buckets(timings.passes))
    yield passes
    requests = HistogramMetricFamily(
        "overlay_cni_request_duration_seconds",
        "CNI requests by command and outcome (done, failed), within the agent.",
        labels=["command", "outcome"],
    )
    outcomes: Mapping[str, Mapping[str, Histogram]] = {
        "done": timings.cni_done,
        "failed": timings.cni_failed,
    }
    for outcome, histograms in outcomes.items():
        for command, histogram in histograms.items():
            requests.add_metric([command, outcome], *_buckets(histogram))
    yield requests


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    totals, sum_s = histogram.read()
    names = ["+Inf" if bound == inf else str(bound) for bound in BOUNDS_S]
    return list(zip(names, map(float, totals), strict=True)), sum_s
