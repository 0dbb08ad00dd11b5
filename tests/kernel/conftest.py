"""Fixtures of the tests that touch the kernel: own namespaces, and a host left as it was."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# `tests` is a namespace package; `python -m pytest` finds it, bare `pytest` only so.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.kernel.netns import MakeNetns, Netns, host_unchanged


@pytest.fixture(scope="session", autouse=True)
def _host_is_untouched() -> Iterator[None]:
    """Fail the run when a test changed the host's own namespace."""
    _need_root()
    with host_unchanged():
        yield


@pytest.fixture
def make_netns() -> Iterator[MakeNetns]:
    """Return a factory of namespaces; all are removed after the test."""
    yield from _factory()


@pytest.fixture(scope="module")
def make_module_netns() -> Iterator[MakeNetns]:
    """Return a factory of namespaces that live as long as the test module."""
    yield from _factory()


@pytest.fixture
def netns(make_netns: MakeNetns) -> Netns:
    """Return one namespace, empty but for ``lo``."""
    return make_netns()


def _factory() -> Iterator[MakeNetns]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


def _need_root() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
