"""The image: what is in it, what is not, and that its programs run."""

import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import source_hash
from pathlib import Path
from typing import Any, Final

import pytest

from overlay import __version__
from tests.runtime.unpacked import UnpackedImage

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(900)]

MOST_BYTES: Final = 120_000_000  # unpacked, as `podman images` counts
ENVIRONMENT: Final = "opt/overlay"
_UNCHECKED: Final = 1  # PEP 552: found by its source's hash, which is not looked at again


@pytest.fixture(scope="module")
def image(fabric_image: Path, tmp_path_factory: pytest.TempPathFactory) -> UnpackedImage:
    return UnpackedImage(fabric_image, tmp_path_factory.mktemp("unpacked"))


def files(image: UnpackedImage, folder: str = "") -> Iterator[Path]:
    return (path for path in (image.root / folder).rglob("*") if path.is_file())


def test_image_is_small(image: UnpackedImage, capsys: pytest.CaptureFixture[str]) -> None:
    mega = f"{image.unpacked_bytes / 1e6:.1f} MB unpacked, {image.packed_bytes / 1e6:.1f} packed"
    with capsys.disabled():
        print(f"\nthe image: {mega}", file=sys.stderr)  # a worker's standard output goes nowhere
    assert image.unpacked_bytes < MOST_BYTES, mega


def test_its_programs_run(image: UnpackedImage) -> None:
    assert image.run("overlayd", "--version") == f"overlayd {__version__}\n"
    assert image.run("overlayctl", "--version") == f"overlayctl {__version__}\n"
    for program in ("nft", "iptables", "ip6tables", "iptables-legacy"):
        assert image.run(program, "--version")
    # Every module that a mode of the agent loads, and what that loads in turn.
    stores = "import overlay.store.kube, overlay.store.etcd, overlay.agent.main"
    image.run("python3", "-c", stores)


def test_settings_are_those_of_the_dockerfile(image: UnpackedImage) -> None:
    assert image.config["Cmd"] == ["overlayd"]
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["Labels"]["org.opencontainers.image.version"] == __version__
    assert "PYTHONDONTWRITEBYTECODE=1" in image.config["Env"]


def test_code_is_written_by_nobody(image: UnpackedImage) -> None:
    paths = [image.root / ENVIRONMENT, *(image.root / ENVIRONMENT).rglob("*")]
    writable = [p for p in paths if not p.is_symlink() and p.stat().st_mode & 0o222]
    assert writable == []
    assert len(paths) > 500


def test_code_is_compiled(image: UnpackedImage) -> None:
    sources = [p for p in files(image, ENVIRONMENT) if p.suffix == ".py"]
    assert any(p.match("overlay/agent/main.py") for p in sources)
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        flags, known = struct.unpack("<4xI8s", compiled.read_bytes()[:16])
        assert (flags, known) == (_UNCHECKED, source_hash(source.read_bytes())), source


def test_bill_of_materials_names_every_package(image: UnpackedImage) -> None:
    bill = json.loads((image.root / "usr/lib/overlay/sbom.cdx.json").read_text())
    parts = [*bill["components"], bill["metadata"]["component"]]
    assert {(p["name"], p["version"]) for p in parts if "pkg:deb/" in p["purl"]} == debian(image)
    assert {(p["name"], p["version"]) for p in parts if "pkg:pypi/" in p["purl"]} == python(image)


def debian(image: UnpackedImage) -> set[tuple[str, str]]:
    """Return Debian's packages by the image's list, as this machine's dpkg reads it."""
    listing = subprocess.run(
        [
            "dpkg-query",
            f"--admindir={image.root / 'var/lib/dpkg'}",
            "--show",
            "--showformat=${Package} ${Version}\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = [line.split() for line in listing.splitlines()]
    return {(name, version) for name, version in found}


def python(image: UnpackedImage) -> set[tuple[str, str]]:
    """Return Python's distributions, as this machine's pip finds them."""
    (site,) = (image.root / ENVIRONMENT).glob("lib/python3*/site-packages")
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--path", str(site), "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: list[dict[str, Any]] = json.loads(listing)
    return {(p["name"].lower().replace("_", "-"), p["version"]) for p in found}


def test_nothing_of_the_build_is_left(image: UnpackedImage) -> None:
    names = {name for name, _ in debian(image)}
    assert names.isdisjoint({"gcc", "make", "apt", "perl-base", "python3-pip"})
    for path in ("src", "etc/apt", "run/secrets", "usr/lib/overlay/image"):
        assert not (image.root / path).exists(), path
    owners = {name for name, _ in python(image)}
    assert "pip" not in owners


def test_no_program_gains_privilege(image: UnpackedImage) -> None:
    gaining = [p for p in files(image) if p.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
    assert gaining == []


def test_plugin_needs_nothing_of_its_host(image: UnpackedImage, tmp_path: Path) -> None:
    """Alone in an empty file system: no Python, no library, no shell."""
    (tmp_path / "overlay").write_bytes((image.root / "usr/lib/overlay/overlay").read_bytes())
    (tmp_path / "overlay").chmod(0o755)
    done = subprocess.run(
        ["chroot", str(tmp_path), "/overlay"],
        env={"CNI_COMMAND": "VERSION", "PATH": os.environ["PATH"]},
        input=b'{"cniVersion": "1.0.0"}',
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1.0.0" in json.loads(done.stdout)["supportedVersions"]
