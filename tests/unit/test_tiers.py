"""What `make test` says at its end, and that it ends: the tiers, second tries, workers."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
# What fails at the first try is done again in the tier etcd, and fails at once in unit.
FIRST: Final = """
import threading
TRIES = []

def test_stalls_once():
    TRIES.append("one")
    assert len(TRIES) > 1, "a stall"

def test_stalls_and_hangs():
    TRIES.append("two")
    assert TRIES.count("two") > 1, "a stall"
    threading.Event().wait(60)
"""
SECOND: Final = """
def test_passes():
    pass

def test_fails():
    assert not "always"
"""


def run(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on two files of tests below ``place``, with the tiers of this tree."""
    for tier, text in (("etcd", FIRST), ("unit", SECOND)):
        folder = place / "tests" / tier
        folder.mkdir(parents=True)
        (folder / f"test_{tier}.py").write_text(text)
    shutil.copy(ROOT / "tests" / "conftest.py", place / "tests")
    (place / "pytest.ini").write_text("[pytest]\nmarkers =\n  etcd: a tier\ntimeout = 4\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--second-try", *options]
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_outcome_is_told_with_its_tier(tmp_path: Path, workers: str) -> None:
    done = run(tmp_path, "--numprocesses", workers, "--dist", "loadfile")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert re.search(r"=+ 2 failed, 2 passed, 2 rerun in .* =+$", lines[-1])
    (etcd,) = (line for line in lines if line.startswith("etcd "))
    assert "1 passed, 1 failed, 2 rerun" in etcd
    (unit,) = (line for line in lines if line.startswith("unit "))
    assert "1 passed, 1 failed (" in unit
    assert "tests/etcd/test_etcd.py::test_stalls_once: AssertionError: a stall" in lines
    assert "Timeout (>4.0s) from pytest-timeout" in done.stdout
