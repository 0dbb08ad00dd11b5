"""A base like Debian's slim image, made by debootstrap from the machine's own mirror.

What the machine's apt is told of mirrors and proxies goes into it, so that a
build on top installs from there, too. It is kept for the next run.
"""

import shutil
import subprocess
import urllib.request
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

RELEASE: Final = "bookworm"
_ANSWER_S: Final = 20  # that a mirror has for its release file


class Source(NamedTuple):
    """One of apt's sources: ``deb URI SUITE COMPONENT``."""

    uri: str
    suite: str
    component: str

    def __str__(self) -> str:
        return f"deb {self.uri} {self.suite} {self.component}"


@cache
def missing() -> str | None:
    """Return why no base can be made here, or None where one can."""
    for command in ("debootstrap", "apt-get", "tar"):
        if shutil.which(command, path=_path()) is None:
            return f"needs the command {command}"
    if not (found := sources()):
        return f"needs Debian's {RELEASE} among apt's sources"
    mirror = f"{found[0].uri}dists/{RELEASE}/Release"
    if not mirror.startswith("http://"):
        return f"needs a mirror over http, for the base has no certificates; apt's is {mirror}"
    try:
        with urllib.request.urlopen(mirror, timeout=_ANSWER_S) as answer:
            answer.read(1)
    except OSError as exc:
        return f"needs apt's mirror: {mirror}: {exc}"
    return None


@cache
def sources() -> tuple[Source, ...]:
    """Return the machine's sources of the release, the release itself before its updates."""
    words = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"]
    listing = _run(*words, "Created-By: Packages")
    parts = [line.split() for line in dict.fromkeys(listing.splitlines())]
    found = [Source(*rest) for origin, *rest in parts if origin == "Debian"]
    return tuple(sorted((s for s in found if s.suite.startswith(RELEASE)), key=_rank))


def _rank(source: Source) -> tuple[bool, bool, str]:
    return source.suite != RELEASE, source.component != "main", source.suite


def write_base(target: Path) -> None:
    """Write the root of a Debian as a tar file; nothing where it is there. Raises OSError."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    root, packed = target.with_suffix(".root"), target.with_suffix(".part")
    shutil.rmtree(root, ignore_errors=True)
    try:
        # Its mounts of /proc and /sys are in a namespace that ends with it.
        apart = ("unshare", "--mount", "--propagation", "private")
        _run(*apart, "debootstrap", "--variant=minbase", RELEASE, str(root), sources()[0].uri)
        apt = root / "etc/apt"
        (apt / "sources.list").write_text("".join(f"{source}\n" for source in sources()))
        (apt / "apt.conf.d/00machine").write_text(_run("apt-config", "dump", "Acquire::http"))
        for name in ("etc/resolv.conf", "etc/hostname"):  # debootstrap copies the machine's
            (root / name).unlink(missing_ok=True)
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        _run("tar", "--directory", str(root), "--one-file-system", "-cf", str(packed), ".")
        packed.rename(target)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        packed.unlink(missing_ok=True)


def _path() -> str:
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PATH": _path()})
    if done.returncode != 0:
        msg = f"{' '.join(words)}: status {done.returncode}: {done.stdout}{done.stderr}"
        raise AssertionError(msg)
    return done.stdout
