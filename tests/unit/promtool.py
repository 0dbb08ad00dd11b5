"""Prometheus' promtool, and the manifests that it judges."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
PLACE: Final = ROOT / "manifests" / "monitoring"
RULES: Final[dict[str, Any]] = yaml.safe_load((PLACE / "alerts.yml").read_text())
DASHBOARD: Final[dict[str, Any]] = json.loads((PLACE / "dashboard.json").read_text())

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)"
)


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def run_promtool(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *words], input=stdin, capture_output=True, text=True, check=False, timeout=120
    )
