"""One etcd for all tests that leave it as it is; each has a prefix of its own."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# `tests` is a namespace package; `python -m pytest` finds it, bare `pytest` only so.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from overlay.lab.etcd import EmbeddedEtcd
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig
from tests.etcd.support import raw_client
from tests.kube.api_server import ApiServer
from tests.kube.certificates import Authority, make_authority
from tests.kube.cluster import PlantedCluster

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="session")
def raw(etcd: EmbeddedEtcd) -> Iterator[Any]:
    client = raw_client(etcd.endpoint)
    yield client
    client.close()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"/test/{next(NUMBERS)}"


@pytest.fixture
def etcd_store(etcd: EmbeddedEtcd, prefix: str) -> Iterator[EtcdLeaseStore]:
    store = EtcdLeaseStore(EtcdConfig((etcd.endpoint,), prefix))
    yield store
    store.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"), "127.0.0.1")


@pytest.fixture
def kube_store(authority: Authority, tmp_path: Path) -> Iterator[PlantedCluster]:
    """Return a store on a cluster with nodes 1 to 9; node-1 has the fifth subnet."""
    api = ApiServer(authority)
    store = PlantedCluster(api, tmp_path)
    for number in range(1, 10):
        store.add_node(number, "10.244.5.0/24" if number == 1 else f"10.244.{number + 10}.0/24")
    yield store
    store.close()
    api.close()
