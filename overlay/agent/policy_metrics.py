"""What policies do on this node, as Prometheus asks for it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from overlay.agent.status import Status
from overlay.model.errors import OverlayError
from overlay.policy.network.table import Denial

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def policy_families(
    status: Status, denied: Callable[[], list[tuple[Denial, int]]]
) -> "Iterator[Metric]":
    """Yield the metrics of policies, with and without any."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    snapshot = status.get()
    state, counters = snapshot.policy, snapshot.counters
    for name, text, value in (
        ("policies", "Network policies in the fabric.", state.policies if state else 0),
        (
            "policy_isolated_addresses",
            "Addresses of this node's pods that a policy isolates.",
            state.isolated if state else 0,
        ),
        (
            "policy_objects_skipped",
            "Objects of policies that could not be read.",
            len(state.skipped) if state else 0,
        ),
        (
            "policy_in_force",
            "1 unless the table of policies is not what the policies say.",
            snapshot.policy_error is None,
        ),
        (
            "policy_compile_seconds",
            "How long the last compilation took.",
            state.compile_s if state else 0,
        ),
        (
            "policy_apply_seconds",
            "How long the kernel took for the last change.",
            state.apply_s if state else 0,
        ),
    ):
        yield GaugeMetricFamily(f"overlay_{name}", text, value=value)
    for name, text, value in (
        ("policy_applies", "Changes of the table of policies.", counters.policy_applies),
        ("policy_connections_cut", "Connections cut by policies.", counters.policy_cuts),
    ):
        yield CounterMetricFamily(f"overlay_{name}", text, value=value)
    yield _denied(denied)


def _denied(denied: Callable[[], list[tuple[Denial, int]]]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        "overlay_policy_denied_packets",
        "Packets that a policy refused; one that several refuse together counts for each. "
        "With audit they passed.",
        labels=["policy", "direction", "audit"],
    )
    sums: dict[tuple[str, str, str], int] = {}
    try:
        found = denied()
    except OverlayError:  # nft cannot be asked; readiness says so
        found = []
    for denial, packets in found:
        way = denial.direction.value if denial.direction is not None else "any"
        for policy in denial.policies or ("",):
            key = (policy, way, "true" if denial.audited else "false")
            sums[key] = sums.get(key, 0) + packets
    for labels, total in sums.items():
        family.add_metric(list(labels), total)
    return family
