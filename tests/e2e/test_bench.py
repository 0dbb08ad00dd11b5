"""Every bench does its work once, in its shortest form; no time is judged."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overlay.lab import netns
from tests.kernel.netns import host_unchanged

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
# Our agent as another one would look: device, route protocol and state are not ours.
OTHER = """#!{python}
import os, sys
import overlay.model.kernel, overlay.model.node
overlay.model.kernel.ROUTE_PROTOCOL = 99
overlay.model.node.vtep_device = lambda vni, family: f"flannel.{{vni}}"
node = os.environ["NODE_NAME"]
sys.argv += [f"--node-name={{node}}", f"--state-dir={place}/{{node}}", "--healthz-port=0"]
from overlay.agent.program import run
run()
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    script = tmp_path / "flanneld"
    script.write_text(OTHER.format(python=sys.executable, place=tmp_path))
    script.chmod(0o755)
    return script


@pytest.fixture(autouse=True)
def same_host() -> Iterator[None]:
    with host_unchanged():
        yield


def bench(name: str, file: Path, *more: str) -> list[dict[str, Any]]:
    """Run a bench and return its records."""
    command = [sys.executable, "-m", "bench", "--quick", name, "--json", str(file), *more]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert "| --" in shown.replace("|-", "| -")
    assert not netns.existing(f"ovb-{process.pid}-")
    document = json.loads(file.read_text())
    assert "kernel" in document["machine"]
    records: list[dict[str, Any]] = document["benches"][name]
    assert records
    return records


@pytest.mark.parametrize(
    "name", ["cold-join", "changes", "event", "start", "restart", "idle", "throughput", "growth"]
)
def test_bench_measures_another_agent_on_the_same_work(
    name: str, tmp_path: Path, other: Path
) -> None:
    records = bench(
        name, tmp_path / "result.json", "--agent", f"{other} -subnet-lease-renew-margin=30"
    )
    ours = [set(r) for r in records if r["agent"] == "overlayd"]
    others = [set(r) for r in records if r["agent"] == "flanneld"]
    assert ours
    assert ours == others


@pytest.mark.parametrize("name", ["cni", "datapath", "nft", "policy", "kube", "scale"])
def test_bench_measures(name: str, tmp_path: Path) -> None:
    bench(name, tmp_path / "result.json")


def test_peers_with_our_own_facts_are_measured_too(tmp_path: Path) -> None:
    bench("event", tmp_path / "result.json", "--leases", "own")


def test_agent_that_ends_is_named_with_its_words_and_other_benches_run(tmp_path: Path) -> None:
    results = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench", "--quick", "event", "nft", "--json", str(results)]
    failing = "sh -c 'echo no such thing >&2; exit 1'"
    done = subprocess.run(
        [*command, "--agent", failing], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert list(json.loads(results.read_text())["benches"]) == ["nft"]
    assert "no such thing" in done.stderr
    assert "Traceback" not in done.stderr
