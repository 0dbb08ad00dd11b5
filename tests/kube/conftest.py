"""One certificate authority for all tests; an API server and a way in for each."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# `tests` is a namespace package; `python -m pytest` finds it, bare `pytest` only so.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from overlay.store.kube_config import KubeAccess
from tests.kube.api_server import ApiServer
from tests.kube.certificates import Authority, make_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"), "127.0.0.1")


@pytest.fixture
def api(authority: Authority) -> Iterator[ApiServer]:
    server = ApiServer(authority)
    yield server
    server.close()


@pytest.fixture
def access(api: ApiServer, tmp_path: Path) -> KubeAccess:
    """Return node-1's way in; the network config is in ``tmp_path``."""
    return KubeAccess(
        "node-1",
        kubeconfig=str(api.kubeconfig(tmp_path / "kubeconfig")),
        net_config_path=tmp_path / "net-conf.json",
        namespace="overlay",
        timeout_s=2.0,
    )
