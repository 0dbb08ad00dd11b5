"""Who is let in: users, tokens that run out, certificates; and what the others are told."""

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import etcd3.etcdrpc as rpc
import grpc
import pytest

from overlay.lab.etcd import EmbeddedEtcd, EtcdTls
from overlay.model.errors import UsageError
from overlay.store.base import StoreAccessError, StoreUnavailableError
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig
from tests.etcd.support import attributes, claim, eventually, raw_client, watched

pytestmark = pytest.mark.etcd

PREFIX = "/coreos.com/network"
PASSWORD = "correct-horse"


@contextmanager
def opened(config: EtcdConfig) -> Iterator[EtcdLeaseStore]:
    store = EtcdLeaseStore(config)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    """Return an etcd that knows `root`, `agent` (our prefix), `stranger` (nothing)."""
    path = tmp_path_factory.mktemp("guarded")
    with EmbeddedEtcd(path, arguments=("--auth-token-ttl", "2")) as etcd:
        client = raw_client(etcd.endpoint)
        stub = rpc.AuthStub(client.channel)
        for name in ("root", "agent", "stranger"):
            stub.UserAdd(rpc.AuthUserAddRequest(name=name, password=PASSWORD))
            stub.RoleAdd(rpc.AuthRoleAddRequest(name=name))
            stub.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=name))
        request: Any = rpc.AuthRoleGrantPermissionRequest(name="agent")
        request.perm.permType = 2  # read and write
        request.perm.key = f"{PREFIX}/".encode()
        request.perm.range_end = f"{PREFIX}0".encode()
        stub.RoleGrantPermission(request)
        stub.AuthEnable(rpc.AuthEnableRequest())
        client.close()
        yield etcd


def login(etcd: EmbeddedEtcd, user: str, password: str = PASSWORD) -> EtcdConfig:
    return EtcdConfig((etcd.endpoint,), PREFIX, username=user, password=password)


def test_user_with_the_right_role_does_everything(guarded: EmbeddedEtcd) -> None:
    with opened(login(guarded, "agent")) as store, watched(store) as seen:
        lease = store.acquire(claim(1))
        seen.wait_for(lease.subnet)
        renewed = store.renew(lease, attributes(1), 60)
        assert store.time_to_live(renewed) in range(50, 61)
        store.release(renewed)
        seen.wait_for()
        assert not seen.troubles


def test_expired_token_is_renewed_by_calls_and_by_a_new_watch(guarded: EmbeddedEtcd) -> None:
    with opened(login(guarded, "agent")) as store, watched(store) as seen:
        seen.wait(lambda _: True)
        before = store._connection.member().client.metadata
        raw = raw_client(guarded.endpoint)
        raw.metadata = before

        def is_expired() -> bool:
            # Asking renews a token's time: ask seldom enough for it to run out.
            threading.Event().wait(3)
            try:
                raw.get(f"{PREFIX}/config")
            except grpc.RpcError as exc:
                return "invalid auth token" in str(exc)
            return False

        eventually(is_expired, 15)
        raw.close()
        lease = store.acquire(claim(2))
        seen.wait_for(lease.subnet)
        assert store._connection.member().client.metadata != before

        threading.Event().wait(3)
        guarded.kill()
        eventually(lambda: len(seen.troubles) == 1)
        guarded.start()
        eventually(lambda: seen.troubles[-1] is None)
        store.release(lease)
        seen.wait_for()


def test_wrong_password_names_the_flags_and_not_the_password(
    guarded: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        opened(login(guarded, "agent", "wrong-horse")) as store,
        pytest.raises(StoreAccessError, match="check --etcd-username and --etcd-password") as e,
    ):
        store.view()
    assert guarded.endpoint in str(e.value)
    assert "horse" not in str(e.value) + caplog.text + repr(login(guarded, "agent"))


def test_missing_user_is_asked_for(guarded: EmbeddedEtcd) -> None:
    with (
        opened(EtcdConfig((guarded.endpoint,))) as store,
        pytest.raises(StoreAccessError, match="set --etcd-username and --etcd-password"),
    ):
        store.view()


def test_user_without_permission_is_told_so_by_calls_and_watch(guarded: EmbeddedEtcd) -> None:
    with opened(login(guarded, "stranger")) as store, watched(store) as seen:
        with pytest.raises(StoreAccessError, match=r"permission denied.*--etcd-prefix"):
            store.acquire(claim(1))
        eventually(lambda: bool(seen.troubles))
        assert isinstance(seen.troubles[0], StoreAccessError)


def test_user_for_an_etcd_without_login_is_no_problem(etcd: EmbeddedEtcd) -> None:
    with opened(EtcdConfig((etcd.endpoint,), "/nobody", username="x", password="y")) as store:
        assert not store.view().leases


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("ca", "other"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl(folder, "req", "-x509", *NEW_KEY, *files, "-subj", f"/CN={name}", "-days", "2")
    issue(folder, "ca", "server", "client")
    issue(folder, "other", "bad")
    return folder


def issue(folder: Path, ca: str, *names: str) -> None:
    """Make new keys and certificates, signed by ``ca``, over those of the same names."""
    for name in names:
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(folder, "req", *NEW_KEY, *files, "-subj", f"/CN={name}")
        signer = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial")
        request = ("-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "2")
        openssl(folder, "x509", *request, *signer, "-extfile", "ext")


@pytest.fixture(scope="module")
def secure(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    tls = EtcdTls(certificates / "ca.pem", certificates / "server.pem", certificates / "server.key")
    with EmbeddedEtcd(tmp_path_factory.mktemp("secure"), tls=tls) as etcd:
        yield etcd


def files(folder: Path, ca: str, certificate: str | None, key: str | None) -> dict[str, Any]:
    return {
        "cafile": str(folder / f"{ca}.pem"),
        "certfile": str(folder / f"{certificate}.pem") if certificate else None,
        "keyfile": str(folder / f"{key}.key") if key else None,
    }


def test_client_certificate_lets_in(secure: EmbeddedEtcd, certificates: Path) -> None:
    config = EtcdConfig((secure.endpoint,), **files(certificates, "ca", "client", "client"))
    with opened(config) as store, watched(store) as seen:
        lease = store.acquire(claim(1))
        seen.wait_for(lease.subnet)


@pytest.mark.parametrize(
    ("ca", "certificate", "key"),
    [
        pytest.param("other", "client", "client", id="etcd is signed by another CA"),
        pytest.param("ca", "bad", "bad", id="client is signed by another CA"),
        pytest.param("ca", None, None, id="no client certificate"),
        pytest.param("ca", "client", "server", id="key of another certificate"),
    ],
)
def test_bad_certificates_name_the_flags(
    secure: EmbeddedEtcd, certificates: Path, ca: str, certificate: str | None, key: str | None
) -> None:
    config = EtcdConfig((secure.endpoint,), **files(certificates, ca, certificate, key))
    started = time.monotonic()
    with opened(config) as store, pytest.raises(StoreAccessError) as caught:
        store.view()
    assert time.monotonic() - started < 4
    for word in (secure.endpoint, "--etcd-cafile", "--etcd-certfile"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_certificates_replaced_on_disk_are_used_without_a_restart(
    certificates: Path, tmp_path: Path
) -> None:
    """A whole new authority: nothing of the old files lets anybody in afterwards."""
    folder = tmp_path / "rotated"
    shutil.copytree(certificates, folder)
    tls = EtcdTls(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    etcd = EmbeddedEtcd(tmp_path / "etcd", tls=tls)
    with etcd:
        config = EtcdConfig((etcd.endpoint,), **files(folder, "ca", "client", "client"))
        with opened(config) as store, watched(store) as seen:
            lease = store.acquire(claim(1))
            seen.wait_for(lease.subnet)
            etcd.stop()
            for suffix in ("pem", "key"):
                (folder / f"other.{suffix}").replace(folder / f"ca.{suffix}")
            issue(folder, "ca", "server")
            (folder / "client.pem").write_text("half a fi")
            etcd.start()
            eventually(lambda: any(isinstance(t, StoreAccessError) for t in seen.troubles))
            issue(folder, "ca", "client")
            eventually(lambda: seen.troubles[-1] is None)
            renewed = store.renew(lease, attributes(1), 60)
            assert store.view().leases == {lease.subnet.key: renewed}


def test_http_where_etcd_speaks_https_is_hinted_at(secure: EmbeddedEtcd) -> None:
    plain = secure.endpoint.replace("https", "http")
    with (
        opened(EtcdConfig((plain,))) as store,
        pytest.raises(StoreUnavailableError, match="https"),
    ):
        store.view()


def test_certificate_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    missing = EtcdConfig(("https://127.0.0.1:1",), cafile=str(tmp_path / "no.pem"))
    with pytest.raises(UsageError, match=r"--etcd-cafile .*no\.pem: No such file"):
        EtcdLeaseStore(missing)
    (tmp_path / "junk").write_text("junk")
    junk = EtcdConfig(("https://127.0.0.1:1",), cafile=str(tmp_path / "junk"))
    with pytest.raises(UsageError, match="no PEM certificate in it"):
        EtcdLeaseStore(junk)
