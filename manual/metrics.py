"""docs/metrics.md, made of what the agent's code says."""

from typing import Final

from overlay.agent.metrics import described

_HEAD: Final = """\
# Metrics

Made of the code by `make docs`; a test fails where this page says something else.

The agent serves `/metrics` on `--healthz-ip`:`--healthz-port` (127.0.0.1:9470), in Prometheus' text
format. Counters begin at 0 with each start of the agent. Durations are in seconds, sizes in bytes.

`manifests/monitoring` has what a Prometheus and a Grafana need:

- `prometheus.yml`: a scrape configuration to start from. For a Prometheus on another host the
  agents must listen there (`--healthz-ip`), in a network that only such may reach, and name peers
  and policies to it (`--metrics-names`): what names them is for the node itself alone otherwise.
- `alerts.yml`: alert rules; each says what to look at. The test suite proves with `promtool` that
  each fires, and that none does on a healthy fabric.
- `dashboard.json`: a Grafana dashboard, to be imported; it asks for the data source.

| metric | type | labels | means |
|---|---|---|---|
"""
_TAIL: Final = """
Why an agent is not ready is told in words at `/readyz` and by `overlayctl status`; what
`overlay_events_total` counts is told one by one by `overlayctl events`.
"""


def page() -> str:
    """Return the page."""
    rows = "".join(
        f"| `{each.name}` | {each.type} | {', '.join(f'`{n}`' for n in each.labels)} | "
        f"{each.text.rstrip('.')} |\n".replace("|  |", "| |")
        for each in described()
    )
    return _HEAD + rows + _TAIL
