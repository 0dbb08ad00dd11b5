"""Requests to the Kubernetes API through lightkube: one answer each, or a stream of lines.

lightkube finds the way in (account, kubeconfig, certificates, tokens that are
read anew once they are refused) and builds the requests. Its own watch is not
used: it never times out, spins on a stream that ends at once, and its errors
while connecting reach nobody's handler (lightkube 1.0.1). Its models are not
used either: a node is some 10 KB of which a lease needs 300 bytes.
"""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import httpx2
import yaml
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ConfigError
from lightkube.core.generic_client import GenericSyncClient

from overlay.model.errors import UsageError
from overlay.store.base import StoreAccessError, StoreError
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_errors import Asked, no_answer, parse_status, refusal
from overlay.store.kube_tls import tls_context, without_certificates

T = TypeVar("T")

# A line for each request, with all that we asked for, is nothing for an operator.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Resource: TypeAlias = Any  # a class of lightkube.resources
Response: TypeAlias = Any  # httpx2.Response

EVERYWHERE: Final = "*"  # the namespace that means all of them
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
_CONNECT_S: Final = 5.0
_LONGEST_ANSWER: Final = 3  # times the timeout: for one that comes drop by drop
# A peer that is gone without a word is noticed within 20 s (tcp(7)).
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),  # milliseconds
)
# What lightkube stumbles over in a file that is no kubeconfig.
_BAD_FILE: Final = (
    AttributeError,
    ConfigError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    yaml.YAMLError,
)
_NO_ANSWER: Final = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of object: lightkube's class, its name in a role, and what is kept of an object.

    ``decode`` gets one object as JSON and raises LeaseFormatError for one
    that cannot be used; ``salvage`` returns what stands for such a one where
    it could never be read, or None.
    """

    resource: Resource
    plural: str
    decode: Callable[[bytes], T]
    salvage: Callable[[bytes], T | None] = lambda _: None


class KubeClient:
    """One cluster's API; any thread may ask. Every call has a deadline.

    Connections are made when first used; ``reconnect`` makes them anew and
    reads account or kubeconfig again.
    """

    def __init__(self, access: KubeAccess, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._lock = threading.Lock()
        self._client: GenericSyncClient | None = None
        self.url = access.shown

    def call(
        self,
        method: str,
        kind: Kind[Any],
        *,
        name: str | None = None,
        namespace: str | None = None,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str | None = None,
    ) -> bytes:
        """Return the body of the answer to ``get``, ``list``, ``patch``, ``post`` or ``delete``.

        Raises what ``kube_errors`` makes of anything but a success.
        """
        asked = Asked(_verb(method), kind.plural, name or "", namespace or "")
        client = self._connected()
        prepared = client.prepare_request(
            method,
            kind.resource,
            obj=body,
            name=name,
            namespace=namespace,
            params=dict(params or {}),
            headers={"Content-Type": content_type} if content_type else None,
        )
        deadline = self._clock() + self._access.timeout_s * _LONGEST_ANSWER
        with self._sent(client, prepared, asked) as response:
            return self._body(response, asked, deadline)

    @contextlib.contextmanager
    def stream(
        self,
        kind: Kind[Any],
        *,
        namespace: str | None,
        params: Mapping[str, str],
        idle_s: float,
    ) -> Any:
        """Give the response of a watch, to be read line by line.

        Silence of ``idle_s`` ends it with an error.
        """
        asked = Asked("watch", kind.plural, "", namespace or "")
        client = self._connected()
        prepared = client.prepare_request(
            "list", kind.resource, namespace=namespace, watch=True, params=dict(params)
        )
        prepared.timeout = httpx2.Timeout(self._access.timeout_s, connect=_CONNECT_S, read=idle_s)
        with self._sent(client, prepared, asked) as response:
            if not response.is_success:
                self._body(response, asked, self._clock() + self._access.timeout_s)
            yield response

    def reconnect(self) -> None:
        """Make connections anew, with the account as it stands now."""
        with self._lock:
            # Not closed: another thread may be in it. It is collected with its last request.
            self._client = None

    def close(self) -> None:
        """Give back connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextlib.contextmanager
    def _sent(self, client: Any, prepared: Any, asked: Asked) -> Any:
        try:
            request = client.build_adapter_request(prepared)
            response = client.send(request, stream=True)
        except ConfigError as exc:  # the token's file is gone, or a login command failed
            msg = f"Kubernetes API at {self.url}: {exc}"
            raise StoreAccessError(msg) from exc
        except _NO_ANSWER as exc:
            raise no_answer(exc, asked, self.url) from exc
        try:
            yield response
        finally:
            response.close()

    def _body(self, response: Response, asked: Asked, deadline: float) -> bytes:
        """Return the whole body of a success. Raises StoreError for anything else."""
        parts: list[bytes] = []
        try:
            for part in response.iter_bytes():
                parts.append(part)
                if self._clock() > deadline:
                    raise TimeoutError("the answer takes too long")
        except _NO_ANSWER as exc:
            raise no_answer(exc, asked, self.url) from exc
        body = b"".join(parts)
        if not response.is_success:
            status = parse_status(body, response.status_code)
            retry_after = str(response.headers.get("Retry-After", ""))
            error: StoreError = refusal(status, asked, self.url, retry_after)
            raise error
        return body

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> GenericSyncClient:
        config = _way_in(self._access)
        self.url = config.cluster.server
        try:
            transport = httpx2.HTTPTransport(verify=tls_context(config), socket_options=_KEEPALIVE)
            timeout = httpx2.Timeout(self._access.timeout_s, connect=_CONNECT_S)
            parameters = ConnectionParams(timeout, transport=transport)
            return GenericSyncClient(parameters, without_certificates(config))
        except (OSError, ssl.SSLError, ValueError, ConfigError) as exc:
            msg = f"Kubernetes API at {self.url}: certificates or login cannot be used: {exc}"
            raise StoreAccessError(msg) from exc


def check_access(access: KubeAccess) -> None:
    """Raise UsageError, naming the flag, where no way in can be read at all."""
    try:
        _way_in(access)
    except StoreAccessError as exc:
        raise UsageError(str(exc)) from exc


def own_namespace(access: KubeAccess) -> str:
    """Return the namespace that the account or the kubeconfig is of."""
    if access.namespace:
        return access.namespace
    return str(_way_in(access).namespace)


def _way_in(access: KubeAccess) -> SingleConfig:
    """Return server, certificates and login. Raises StoreAccessError naming the flag."""
    if access.kubeconfig is not None:
        return _from_file(access.kubeconfig, access.api_url)
    account = access.account_dir
    if access.api_url is None:
        try:
            return KubeConfig.from_service_account(str(account)).get()
        except (ConfigError, OSError, KeyError) as exc:
            msg = (
                f"no way into the Kubernetes API: no service account of a pod under {account} "
                f"({exc}); name a file with --kubeconfig-file, or the account's folder with "
                "--kube-account-dir"
            )
            raise StoreAccessError(msg) from exc
    if not (account / "token").exists():
        return KubeConfig.from_server(access.api_url).get()._replace(user=User())
    authority = account / "ca.crt"
    cluster = Cluster(
        server=access.api_url, certificate_auth=str(authority) if authority.exists() else None
    )
    user = User(token_file=str(account / "token"))
    try:
        namespace = (account / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        namespace = ""
    return KubeConfig.from_one(cluster=cluster, user=user, namespace=namespace or None).get()


def _from_file(path: str, api_url: str | None) -> SingleConfig:
    try:
        config = KubeConfig.from_file(path).get()
    except _BAD_FILE as exc:
        detail = " ".join(f"{type(exc).__name__}: {exc}".split())[:200]
        msg = f"--kubeconfig-file {path} cannot be used: {detail}"
        raise StoreAccessError(msg) from exc
    config = config._replace(user=config.user if config.user is not None else User())
    if api_url is not None:
        config.cluster.server = api_url
    return config


def _verb(method: str) -> str:
    return {"post": "create", "put": "update"}.get(method, method)
