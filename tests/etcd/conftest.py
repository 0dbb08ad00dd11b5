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
