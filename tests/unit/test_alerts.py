"""The alert rules: each fires on its fault, in time and alone, and none on a healthy fabric."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.unit.promtool import PLACE, promtool, rules, run_promtool


@promtool
def test_rules_and_configuration_pass_promtool() -> None:
    for words in (["rules", "alerts.yml"], ["config", "prometheus.yml"]):
        done = run_promtool("check", words[0], str(PLACE / words[1]))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alert_says_how_bad_it_is_and_what_to_look_at(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.search(r"`[a-z]+|\?", rule["annotations"]["description"])


def add_bucket(bound: str) -> str:
    labels = f'instance="n1", command="ADD", outcome="done", le="{bound}"'
    return f"overlay_cni_request_duration_seconds_bucket{{{labels}}}"


def add_count(outcome: str) -> str:
    labels = f'instance="n1", command="ADD", outcome="{outcome}"'
    return f"overlay_cni_request_duration_seconds_count{{{labels}}}"


def to_peer(what: str, path: str) -> str:
    return f'overlay_mesh_peer_{what}{{instance="n1", peer="n2", path="{path}"}}'


# Two nodes for six hours, a value a minute, as promtool writes them: start+step x times.
HEALTHY: Final = {
    'up{job="overlayd", instance="n1"}': "1x360",
    'overlay_ready{instance="n1"}': "1x360",
    'overlay_store_connected{instance="n1"}': "1x360",
    'overlay_events_total{instance="n1", kind="lease-lost"}': "0x360",
    'overlay_events_total{instance="n1", kind="lease-renewed"}': "0+1x360",
    'overlay_stranded_pods{instance="n1"}': "0x360",
    'overlay_peers_held{instance="n1"}': "0x360",
    'overlay_peers{instance="n1"}': "9x360",
    'overlay_peers{instance="n2"}': "9x360",
    'overlay_lease_keys_skipped{instance="n1"}': "0x360",
    'overlay_lease_problems{instance="n1"}': "0x360",
    'overlay_kernel_errors{instance="n1"}': "0x360",
    'overlay_contested_objects{instance="n1"}': "0x360",
    'overlay_kernel_repairs_total{instance="n1"}': "0+1x360",
    'overlay_reconcile_duration_seconds_bucket{instance="n1", le="0.005"}': "0+60x360",
    'overlay_reconcile_duration_seconds_bucket{instance="n1", le="10.0"}': "0+60x360",
    'overlay_reconcile_duration_seconds_bucket{instance="n1", le="+Inf"}': "0+60x360",
    add_bucket("0.01"): "0+9x360",
    add_bucket("2.5"): "0+9x360",
    add_bucket("+Inf"): "0+9x360",
    add_count("done"): "0+9x360",
    add_count("failed"): "0+0x360",
    to_peer("loss_ratio", "overlay"): "0x360",
    to_peer("loss_ratio", "underlay"): "0x360",
    to_peer("rtt_seconds", "overlay"): "0.0008x360",
    to_peer("rtt_seconds", "underlay"): "0.0005x360",
    'overlay_mesh_path_mtu_too_small_peers{instance="n1"}': "0x360",
    'overlay_mesh_refused_total{instance="n1", reason="unsealed"}': "0x360",
    'overlay_mesh_refused_total{instance="n1", reason="unasked"}': "0+9x360",
    'overlay_policy_in_force{instance="n1"}': "1x360",
    'overlay_policy_objects_skipped{instance="n1"}': "0x360",
}

# What is different where an alert fires, when it does not yet, and when it does.
FAULTS: Final[dict[str, tuple[dict[str, str], str, str]]] = {
    "OverlayAgentDown": ({'up{job="overlayd", instance="n1"}': "1x9 0x350"}, "14m", "16m"),
    "OverlayNotReady": ({'overlay_ready{instance="n1"}': "1x9 0x350"}, "14m", "16m"),
    "OverlayStoreDisconnected": (
        {'overlay_store_connected{instance="n1"}': "1x9 0x350"}, "19m", "21m"),
    "OverlayLeaseLost": (
        {'overlay_events_total{instance="n1", kind="lease-lost"}': "0x30 1x329"}, "30m", "32m"),
    "OverlayStrandedPods": ({'overlay_stranded_pods{instance="n1"}': "0x9 2x350"}, "14m", "16m"),
    "OverlayPeersHeld": ({'overlay_peers_held{instance="n1"}': "0x9 400x350"}, "9m", "11m"),
    "OverlayPeersDiffer": ({'overlay_peers{instance="n2"}': "9x9 8x350"}, "19m", "21m"),
    "OverlayLeasesUnusable": ({'overlay_lease_problems{instance="n1"}': "0x9 1x350"}, "19m", "21m"),
    "OverlayKernelRefuses": ({'overlay_kernel_errors{instance="n1"}': "0x9 1x350"}, "14m", "16m"),
    "OverlayContested": ({'overlay_contested_objects{instance="n1"}': "0x9 1x350"}, "14m", "16m"),
    "OverlayDrift": (
        {'overlay_kernel_repairs_total{instance="n1"}': "0+1x60 60+9x290"}, "59m", "70m"),
    "OverlaySlowPasses": (
        {'overlay_reconcile_duration_seconds_bucket{instance="n1", le="0.005"}': "0+50x360"},
        "14m", "40m"),
    "OverlaySlowAdd": (
        {add_bucket("0.01"):
         "0+8x360"}, "14m", "40m"),
    "OverlayAddsFail": (
        {add_count("failed"):
         "0x60 0+2x290"}, "60m", "80m"),
    "OverlayTunnelBroken": ({to_peer("loss_ratio", "overlay"): "0x9 1x350"}, "14m", "16m"),
    "OverlayPeerSilent": (
        {to_peer("loss_ratio", "overlay"): "0x9 1x350",
         to_peer("loss_ratio", "underlay"): "0x9 1x350"}, "24m", "26m"),
    "OverlayPathLossy": ({to_peer("loss_ratio", "overlay"): "0x9 0.2x350"}, "24m", "26m"),
    "OverlayPathSlow": ({to_peer("rtt_seconds", "overlay"): "0.0008x9 0.05x350"}, "24m", "26m"),
    "OverlayPathMtuTooSmall": (
        {'overlay_mesh_path_mtu_too_small_peers{instance="n1"}': "0x9 2x350"}, "24m", "26m"),
    "OverlayStrangeProbes": (
        {'overlay_mesh_refused_total{instance="n1", reason="unsealed"}': "0x60 0+10x290"},
        "60m", "70m"),
    "OverlayPolicyNotInForce": (
        {'overlay_policy_in_force{instance="n1"}': "1x9 0x350"}, "14m", "16m"),
    "OverlayPolicyUnreadable": (
        {'overlay_policy_objects_skipped{instance="n1"}': "0x9 1x350"}, "24m", "26m"),
}  # fmt: skip


def firing(at: str, *alerts: str) -> dict[str, Any]:
    """Return the test that exactly ``alerts`` fire then."""
    return {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": at,
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
    }


def judge(series: dict[str, str], tests: list[dict[str, Any]], place: Path) -> None:
    document = {
        "rule_files": [str(PLACE / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": v} for name, v in series.items()],
                "promql_expr_test": tests,
            }
        ],
    }
    path = place / "test.yml"
    path.write_text(yaml.safe_dump(document))
    done = run_promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_fault() -> None:
    assert list(FAULTS) == [rule["alert"] for rule in rules()]


@promtool
def test_healthy_fabric_is_silent(tmp_path: Path) -> None:
    judge(HEALTHY, [firing(at) for at in ("5m", "30m", "3h", "6h")], tmp_path)


@promtool
@pytest.mark.parametrize("alert", FAULTS)
def test_alert_fires_in_time_alone_and_not_before(alert: str, tmp_path: Path) -> None:
    series, before, after = FAULTS[alert]
    assert set(series) <= set(HEALTHY)
    judge({**HEALTHY, **series}, [firing(before), firing(after, alert)], tmp_path)
