"""The lab that a module of runtimes shares."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.kernel.netns import host_unchanged
from tests.runtime.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with host_unchanged(), ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("runtime"), stack)
