"""A kubeconfig's certificates as data, where no temporary file can be written."""

import base64
import json
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.store.base import StoreAccessError
from overlay.store.kube import KubeLeaseStore
from overlay.store.kube_config import KubeAccess
from tests.kube.api_server import ApiServer
from tests.kube.certificates import Authority
from tests.kube.cluster import NODES, node


class Demanding(Authority):
    """An authority whose server lets nobody in without a certificate of its own."""

    def server_context(self) -> ssl.SSLContext:
        context = Authority.server_context(self)
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture
def demanding(authority: Authority) -> Iterator[ApiServer]:
    server = ApiServer(Demanding(authority.ca, authority.certificate, authority.key))
    server.objects.create(NODES, node("n1", "10.244.1.0/24"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")


def kubeconfig(api: ApiServer, place: Path, **user: str) -> str:
    """Write a kubeconfig with the authority as data, and ``user``."""
    path = api.kubeconfig(place / "kubeconfig")
    document = json.loads(path.read_text())
    cluster = document["clusters"][0]["cluster"]
    cluster["certificate-authority-data"] = data(Path(cluster["certificate-authority"]))
    cluster["certificate-authority"] = "/nowhere/ca.crt"  # data comes first
    document["users"][0]["user"] |= {key.replace("_", "-"): v for key, v in user.items()}
    path.write_text(json.dumps(document))
    return str(path)


def data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def leases(file: str, place: Path) -> set[str]:
    access = KubeAccess("n1", kubeconfig=file, net_config_path=place / "none", namespace="overlay")
    store = KubeLeaseStore(access)
    try:
        return set(store.view().leases)
    finally:
        store.close()


@pytest.mark.parametrize("is_data", [True, False])
def test_certificates_as_data_need_no_file(
    demanding: ApiServer, authority: Authority, tmp_path: Path, is_data: bool
) -> None:
    pair = {"client_certificate": authority.certificate, "client_key": authority.key}
    if is_data:
        user = {f"{name}_data": data(path) for name, path in pair.items()}
    else:
        user = {name: str(path) for name, path in pair.items()}
    assert leases(kubeconfig(demanding, tmp_path, **user), tmp_path) == set()
    assert demanding.asked("list", "nodes")


@pytest.mark.parametrize("text", ["%%%", base64.b64encode(b"no certificate").decode()])
def test_data_that_is_no_certificate_is_told(
    demanding: ApiServer, tmp_path: Path, text: str
) -> None:
    user = {"client_certificate_data": text, "client_key_data": text}
    with pytest.raises(StoreAccessError, match="certificates or login cannot be used"):
        leases(kubeconfig(demanding, tmp_path, **user), tmp_path)
