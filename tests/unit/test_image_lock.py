"""The lock of the image: of requirements.lock what the fabric needs, and nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).parents[2]
_IMAGE: Final = _ROOT / "manifests/image"

REQUIREMENTS: Final = """# made by pip-compile
left==1 \\
    --hash=sha256:aa
    # via overlay-fabric (setup.cfg)
Left_Inner==2 \\
    --hash=sha256:bb
    # via
    #   left
    #   tester
odd==3 \\
    --hash=sha256:cc
    # via tester
tester==4 \\
    --hash=sha256:dd
    # via overlay-fabric (setup.cfg)

# unsafe
"""
SETUP: Final = """[options]
install_requires =
    left >=1,<2
[options.extras_require]
dev =
    tester
"""


def lock(requirements: Path, setup: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(_IMAGE / "lock.py"), str(requirements), str(setup)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_lock_is_what_make_lock_writes() -> None:
    done = lock(_ROOT / "requirements.lock", _ROOT / "setup.cfg")
    assert done.stdout == (_IMAGE / "requirements.lock").read_text(), "run `make lock`"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    requirements, setup = tmp_path / "requirements.lock", tmp_path / "setup.cfg"
    requirements.write_text(REQUIREMENTS)
    setup.write_text(SETUP)
    return requirements, setup


def test_what_only_an_extra_asks_for_stays_out(files: tuple[Path, Path]) -> None:
    entries = lock(*files).stdout.partition("\n")[2]
    assert entries == ("left==1 \\\n    --hash=sha256:aa\nLeft_Inner==2 \\\n    --hash=sha256:bb\n")


def test_requirement_that_is_not_locked_is_named(files: tuple[Path, Path]) -> None:
    files[1].write_text(SETUP.replace("left >=1,<2", "left >=1\n    absent >=2"))
    done = lock(*files)
    assert done.returncode != 0
    assert "has no absent; run `make lock`" in done.stderr
