"""The lab that a module of runtimes shares."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.netns import host_unchanged
from tests.runtime.build import build_image, missing
from tests.runtime.site import Site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the file that builds the image first: the other one that wants it then waits less."""
    items.sort(key=lambda item: item.path.name != "test_image.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with host_unchanged(), ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("runtime"), stack)


@pytest.fixture(scope="session")
def fabric_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an OCI archive of the fabric's image, built from this source."""
    if reason := missing():
        pytest.skip(f"the image is not built: {reason}")
    with host_unchanged():
        return build_image(tmp_path_factory.mktemp("build"))
