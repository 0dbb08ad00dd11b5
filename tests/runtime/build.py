"""The fabric's own image, built from the Dockerfile without a registry.

buildah works in a mount namespace and a store of its own. pip is told in the
build what it is told on this machine; directories of packages that it is told
of are mounted where it looks for them. The finished image is kept under a name
made of all that it is made from, so that the next run need not build it.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from overlay import __version__
from tests.runtime import debian

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = f"docker.io/library/overlay-fabric:{__version__}"  # what `overlay-fabric:...` means
BASE: Final = f"localhost/overlay-base:{debian.RELEASE}"
# In mounts of its own, and giving way to tests that have deadlines.
_APART: Final = ("nice", "-n", "19", "unshare", "--mount", "--propagation", "private")
_KEPT: Final = ROOT / "build" / "image"
_CERTIFICATES: Final = "/run/secrets/ca.crt"
_INDEX: Final = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout")


@dataclass(frozen=True, slots=True)
class Pip:
    """What pip is told here, for a build: the text of a pip.conf, and where its files are."""

    config: str
    certificates: Path | None
    folders: tuple[Path, ...]


def missing() -> str | None:
    """Return why the image cannot be built here, or None where it can."""
    if shutil.which("buildah") is None:
        return "needs the command buildah"
    return debian.missing()


def build_image(place: Path) -> Path:
    """Return an OCI archive of the image, NAME inside; ``place`` is for what is made on the way."""
    base = _KEPT / f"{debian.RELEASE}.tar"
    _KEPT.mkdir(parents=True, exist_ok=True)
    # Two files of tests want the image, and may run side by side: the first builds it.
    with (_KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        debian.write_base(base)
        archive = _KEPT / f"{_digest(base)}.oci.tar"
        if not archive.exists():
            for old in _KEPT.glob("*.oci.tar"):
                old.unlink()
            _build(base, place, archive)
    return archive


def _build(base: Path, place: Path, archive: Path) -> None:
    config, pip = place / "pip.conf", pip_settings()
    config.write_text(pip.config)
    options = ["--secret", f"id=pip.conf,src={config}"]
    if pip.certificates is not None:
        options += ["--secret", f"id=ca.crt,src={pip.certificates}"]
    for folder in pip.folders:
        options += ["--volume", f"{folder}:{folder}:ro"]
    built = place / "built.tar"
    try:
        container = _buildah(place, "from", "scratch").strip()
        _buildah(place, "add", "--quiet", container, str(base), "/")
        _buildah(place, "commit", "--quiet", "--rm", container, BASE)
        options += ["--pull-never", "--build-arg", f"BASE={BASE}", "--tag", NAME]
        _buildah(place, "build", "--isolation", "chroot", *options, str(ROOT))
        _buildah(place, "push", "--quiet", NAME, f"oci-archive:{built}:{NAME}")
        shutil.move(built, archive)
    finally:
        _buildah(place, "rm", "--all")
        _buildah(place, "rmi", "--all", "--force")


def pip_settings() -> Pip:
    """Return what `pip config list` says of indexes, with certificates where a build has them."""
    words = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        # In the order of their rank: what comes later wins.
        found[key.rpartition(".")[2]] = value.strip("'")
    told: dict[str, str] = {key: found[key] for key in _INDEX if key in found}
    certificates = Path(found["cert"]) if "cert" in found else None
    if certificates is not None:
        told["cert"] = _CERTIFICATES
    lines = "".join(f"{key} = {value}\n" for key, value in told.items())
    return Pip(f"[global]\n{lines}", certificates, _folders(told))


def _folders(told: dict[str, str]) -> tuple[Path, ...]:
    """Return the directories of this machine that pip looks into."""
    found = []
    for key in ("index-url", "extra-index-url", "find-links"):
        for word in told.get(key, "").split():
            parts = urlsplit(word)
            # The files of an index lie beside its pages.
            path = Path(parts.path).parent if parts.scheme == "file" else Path(word)
            if path.is_absolute() and path.is_dir():
                found.append(path)
    return tuple(dict.fromkeys(found))


def _digest(base: Path) -> str:
    """Return a name for all that the image is made of, but what indexes and mirrors have."""
    known = hashlib.sha256(str(base.stat().st_mtime_ns).encode())
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for name in sorted(filter(None, listing.split("\0"))):
        path = ROOT / name
        if path.is_file() and name.startswith(_context()):
            known.update(f"{name}\0{path.stat().st_mode}\0".encode() + path.read_bytes())
    return known.hexdigest()[:16]


def _context() -> tuple[str, ...]:
    """Return what .dockerignore lets through, and the Dockerfile itself."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return ("Dockerfile", *(line[1:] for line in lines if line.startswith("!")))


def _buildah(place: Path, *words: str) -> str:
    storage = place / "storage.conf"
    # As bundles of plain directories: the store's own file system may be an overlay already.
    graph, run = place / "storage", place / "run"
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{graph}"\nrunroot = "{run}"\n')
    environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "TMPDIR": str(place)}
    done = subprocess.run(
        [*_APART, "buildah", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"buildah {' '.join(words)}: status {done.returncode}: {done.stdout}\n{done.stderr}"
        raise AssertionError(msg[-8000:])
    return done.stdout
