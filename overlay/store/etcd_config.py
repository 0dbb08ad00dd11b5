"""Where etcd is and how to get in, as flags say it. Loads no gRPC."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from overlay.model.errors import UsageError

DEFAULT_PREFIX: Final = "/coreos.com/network"
DEFAULT_ENDPOINT: Final = "http://127.0.0.1:2379"


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """How to reach one fabric in etcd.

    ``endpoints`` are URLs; ``timeout_s`` is the time that one call may take
    over all of them. Raises UsageError naming the flag
    for what cannot be used.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    prefix: str = DEFAULT_PREFIX
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.endpoints:
            msg = f"--etcd-endpoints is empty; name at least one URL such as {DEFAULT_ENDPOINT}"
            raise UsageError(msg)
        for endpoint in self.endpoints:
            parse_endpoint(endpoint)
        if not self.prefix.startswith("/") or not self.prefix.strip("/"):
            msg = f"--etcd-prefix {self.prefix!r}: write a path such as {DEFAULT_PREFIX}"
            raise UsageError(msg)
        if (self.certfile is None) != (self.keyfile is None):
            msg = "--etcd-certfile and --etcd-keyfile go together; give both or none"
            raise UsageError(msg)
        if self.password is not None and self.username is None:
            msg = "--etcd-password without --etcd-username; give both or none"
            raise UsageError(msg)
        if self.timeout_s <= 0:
            msg = f"etcd timeout {self.timeout_s} s; it must be more than 0"
            raise UsageError(msg)

    @property
    def root(self) -> str:
        """Return the prefix with one slash at its end."""
        return self.prefix.rstrip("/") + "/"

    @property
    def shown(self) -> str:
        """Return the endpoints as an operator would write them."""
        return ",".join(self.endpoints)


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """One endpoint: ``host`` with brackets around an IPv6 address."""

    host: str
    port: int
    is_secure: bool


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The contents of the certificate files; None for what no flag names."""

    authority: bytes | None
    key: bytes | None = field(repr=False)
    certificate: bytes | None


def parse_endpoint(url: str) -> EndpointAddress:
    """Return what an endpoint's URL names.

    >>> parse_endpoint("https://[fd00::1]:2379")
    EndpointAddress(host='[fd00::1]', port=2379, is_secure=True)

    Raises UsageError.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host is not None and ":" in host:
            ip_address(host)
    except ValueError as exc:
        raise _bad_endpoint(url, str(exc)) from exc
    if parts.scheme not in ("http", "https"):
        raise _bad_endpoint(url, "it must begin with http:// or https://")
    if not host or any(c.isspace() for c in url):
        raise _bad_endpoint(url, "it names no host")
    if parts.username is not None or parts.password is not None:
        raise _bad_endpoint(parts.scheme + "://...", "user and password have flags of their own")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _bad_endpoint(url, "nothing may follow the port")
    if port is None or port == 0:
        raise _bad_endpoint(url, "it names no port; etcd's is 2379")
    return EndpointAddress(f"[{host}]" if ":" in host else host, port, parts.scheme == "https")


def read_certificates(config: EtcdConfig) -> CertificateFiles:
    """Return the contents of the files that ``config`` names.

    Raises UsageError naming flag, file and reason.
    """
    return CertificateFiles(
        authority=_read("--etcd-cafile", config.cafile, b"CERTIFICATE"),
        key=_read("--etcd-keyfile", config.keyfile, b"PRIVATE KEY"),
        certificate=_read("--etcd-certfile", config.certfile, b"CERTIFICATE"),
    )


def certificate_stamps(config: EtcdConfig) -> tuple[tuple[int, int, int] | None, ...]:
    """Return what tells whether the certificate files were replaced; None for one that is away."""
    return tuple(
        _stamp(Path(path))
        for path in (config.cafile, config.certfile, config.keyfile)
        if path is not None
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(flag: str, path: str | None, kind: bytes) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        msg = f"{flag} {path}: {reason}"
        raise UsageError(msg) from exc
    if b"-----BEGIN" not in content or kind not in content:
        msg = f"{flag} {path}: no PEM {kind.decode().lower()} in it"
        raise UsageError(msg)
    return content


def _bad_endpoint(url: str, problem: str) -> UsageError:
    return UsageError(f"--etcd-endpoints {url!r}: {problem}; write {DEFAULT_ENDPOINT}")
