"""Metrics, their page and the dashboard tell one story, as Prometheus' own tools judge."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from manual.metrics import page
from overlay.agent.metrics import described, render_metrics
from overlay.agent.status import Status
from overlay.agent.timings import BOUNDS_S
from overlay.model.event import Kind
from tests.unit.promtool import DASHBOARD, ROOT, promtool, rules, run_promtool

SUFFIXES = {"histogram": ("_bucket", "_count", "_sum")}


def expressions(node: Any) -> Iterator[str]:
    """Yield what a dashboard asks Prometheus for."""
    if isinstance(node, dict):
        yield from (v for k, v in node.items() if k in {"expr", "definition"})
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for item in node:
            yield from expressions(item)


def exposed() -> set[str]:
    """Return the names that a query can use."""
    return {m.name + suffix for m in described() for suffix in SUFFIXES.get(m.type, ("",))}


def test_page_says_what_the_code_says() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert text == page(), "run `make docs`"


@pytest.mark.parametrize("metric", described(), ids=lambda metric: metric.name)
def test_metric_follows_the_conventions(metric: Any) -> None:
    """prometheus.io/docs/practices/naming."""
    assert re.fullmatch(r"(overlay|process)_[a-z][a-z_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert not re.search(r"_(ms|milliseconds|minutes|kb|kilobytes|percent)\b", metric.name)
    assert metric.text.strip()
    if metric.type == "histogram":
        assert metric.name.endswith("_seconds")


@promtool
def test_metrics_pass_promtools_own_check() -> None:
    status = Status()
    status.timings.passes.observe(0.004)
    status.timings.cni_failed["ADD"].observe(70.0)
    _, text = render_metrics(status, 2)
    done = run_promtool("check", "metrics", stdin=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_histogram_counts_what_was_observed() -> None:
    status = Status()
    for seconds in (0.0005, 0.004, 0.004, 99.0):
        status.timings.passes.observe(seconds)
    _, text = render_metrics(status, 0)
    name = "overlay_reconcile_duration_seconds"
    for bound, count in (("0.001", 1), ("0.0025", 1), ("0.005", 3), ("30.0", 3), ("+Inf", 4)):
        assert f'{name}_bucket{{le="{bound}"}} {count}.0\n' in text
    assert f"{name}_count 4.0\n" in text
    assert f"{name}_sum 99.0085\n" in text
    assert sorted(BOUNDS_S) == list(BOUNDS_S)


def test_events_are_counted_by_kind() -> None:
    status = Status()
    for _ in range(3):
        status.events.note(Kind.RULESET_APPLIED, "in step")
    status.events.flush()
    assert 'overlay_events_total{kind="ruleset-applied"} 3.0\n' in render_metrics(status, 0)[1]


@pytest.mark.parametrize(
    "text",
    [*(rule["expr"] for rule in rules()), *dict.fromkeys(expressions(DASHBOARD))],
    ids=lambda text: text[:60],
)
def test_query_names_metrics_and_labels_that_are_there(text: str) -> None:
    names = set(re.findall(r"\b(?:overlay|process)_[a-z_]+", text))
    assert names <= exposed()
    kinds = re.findall(r'kind="([^"]*)"', text)
    assert set(kinds) <= set(map(str, Kind))
    assert names or "up{" in text


def test_dashboard_can_be_imported() -> None:
    """It asks for the data source, as an exported one does, and no panel hides another."""
    (source,) = DASHBOARD["__inputs"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == f"${{{source['name']}}}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@promtool
@pytest.mark.parametrize(
    "text", list(dict.fromkeys(expressions(DASHBOARD["panels"]))), ids=lambda text: text[:60]
)
def test_dashboards_queries_are_promql(text: str, tmp_path: Path) -> None:
    query = text.replace("$__rate_interval", "5m").replace("$instance", ".*")
    rule = {"groups": [{"name": "panel", "rules": [{"record": "panel", "expr": query}]}]}
    path = tmp_path / "rule.yml"
    path.write_text(yaml.safe_dump(rule))
    done = run_promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stderr
