"""Flags about etcd: what can be used, and which flag an error names."""

from pathlib import Path
from typing import Any

import pytest

from overlay.model.errors import UsageError
from overlay.store.etcd_config import EndpointAddress, EtcdConfig, parse_endpoint, read_certificates


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:2379", EndpointAddress("127.0.0.1", 2379, is_secure=False)),
        ("https://etcd.example:2379/", EndpointAddress("etcd.example", 2379, is_secure=True)),
        ("http://[fd00::1]:2379", EndpointAddress("[fd00::1]", 2379, is_secure=False)),
    ],
)
def test_endpoint(url: str, expected: EndpointAddress) -> None:
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:2379",
        "ftp://127.0.0.1:2379",
        "http://:2379",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:port",
        "http://127.0.0.1:2379/v3",
        "http://127.0.0.1:2379?x",
        "http://[fd00::1:2379",
        "http://[nonsense]:2379",
        "http://a b:2379",
        "http://127.0.0.1:2379,http://127.0.0.2:2379",
    ],
)
def test_bad_endpoint_names_the_flag(url: str) -> None:
    with pytest.raises(UsageError, match="--etcd-endpoints"):
        EtcdConfig((url,))


def test_password_in_an_endpoint_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        EtcdConfig(("http://user:secret@127.0.0.1:2379",))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"endpoints": ()}, "--etcd-endpoints"),
        ({"prefix": "coreos.com"}, "--etcd-prefix"),
        ({"prefix": "/"}, "--etcd-prefix"),
        ({"certfile": "x"}, "--etcd-keyfile"),
        ({"keyfile": "x"}, "--etcd-certfile"),
        ({"password": "x"}, "--etcd-username"),
        ({"timeout_s": 0}, "timeout"),
    ],
)
def test_what_cannot_be_used_names_the_flag(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        EtcdConfig(**changes)


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(EtcdConfig(username="x", password="secret"))


def test_prefix_ends_in_one_slash() -> None:
    assert EtcdConfig(prefix="/a/b/").root == EtcdConfig(prefix="/a/b").root == "/a/b/"


@pytest.mark.parametrize("content", [None, b"", b"junk", b"-----BEGIN PRIVATE KEY-----"])
def test_bad_certificate_file_names_flag_and_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--etcd-cafile .*ca\.pem: "):
        read_certificates(EtcdConfig(cafile=str(path)))
