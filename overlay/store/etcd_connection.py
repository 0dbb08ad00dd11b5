"""Connections to etcd's members: deadlines, failover, and the login.

One etcd3 client for each endpoint gives channels, TLS, reads, transactions
and leases; its watcher and its own login are not used, because neither
survives a restart of etcd or an expired token.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import etcd3
import etcd3.etcdrpc as rpc
import grpc
import tenacity

from overlay.model.errors import UsageError
from overlay.store.base import StoreError, StoreUnavailableError
from overlay.store.etcd_config import (
    EtcdConfig,
    certificate_stamps,
    parse_endpoint,
    read_certificates,
)
from overlay.store.etcd_errors import (
    CALL_ERRORS,
    CertificateError,
    CompactedError,
    GoneError,
    OutcomeUnknownError,
    StaleConnectionError,
    TokenError,
    status_of,
    translate,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Client: TypeAlias = Any  # etcd3.MultiEndpointEtcd3Client, which has no types
Metadata: TypeAlias = tuple[tuple[str, str], ...]
Dial: TypeAlias = Callable[[str], Client]  # a client for an endpoint's URL

_MIN_ATTEMPT_S: Final = 1.0
CHANNEL_OPTIONS: Final = (
    # etcd answers pings that come more often than every 5 s (its
    # --grpc-keepalive-min-time) with GOAWAY too_many_pings; with 3 s it did
    # so after 9 s of an idle watch (etcd 3.5.1, November 2026).
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    # What gRPC 1.85 really waits for the answer to a ping, a minute by itself:
    # a connection gone silent was noticed after 16.6 s, by a read.
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long a connection may take to be made.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
    # ``grpc.http2.bdp_probe`` stays on: its pings cost 10 ms of an idle minute, and show a member
    # that hangs after 2.6 s instead of 8 (November 2026).
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
# The watch has a connection of its own, so that of the calls need not stay: the
# next one comes in an hour, perhaps, and etcd pays for each that is open.
_CALL_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.client_idle_timeout_ms", 5000))


@dataclass(slots=True)
class Member:
    """One endpoint, the client that now talks to it, and the credentials it was made with.

    ``calls`` has what ends each stream to it: those have connections of their own.
    """

    url: str
    client: Client
    credentials: object
    calls: set[Callable[[], None]] = field(default_factory=set)
    is_closed: bool = False

    def end_calls(self) -> None:
        """End every stream; repeating it is safe."""
        for end in tuple(self.calls):
            end()


class EtcdConnection:
    """Calls to whichever endpoint answers. May be used from any thread.

    ``dial`` makes clients; without it they are gRPC's, and UsageError is
    raised for certificate files that cannot be used.
    """

    def __init__(
        self,
        config: EtcdConfig,
        *,
        dial: Dial | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._attempt_s = max(config.timeout_s / len(config.endpoints), _MIN_ATTEMPT_S)
        self._lock = threading.Lock()  # the login, the members' clients, which member is next
        self._metadata: Metadata | None = None  # empty where etcd asks for no login
        self._credentials: Callable[[], object] = lambda: None
        if dial is None:
            certificates = _Certificates(config)
            self._credentials = certificates.credentials
            dial = _GrpcDial(certificates, self._attempt_s)
        self._dial = dial
        made_with = self._credentials()
        self._members = [Member(url, self._client(url), made_with) for url in config.endpoints]
        self._current = 0
        self._is_closed = False
        self.reconnects = 0  # made on demand, which says nothing against any member

    @property
    def attempt_s(self) -> float:
        """Return how long one call to one endpoint may take, in seconds."""
        return self._attempt_s

    def close(self) -> None:
        """Close every channel; calls under way fail."""
        with self._lock:
            self._is_closed = True
            for member in self._members:
                member.is_closed = True
                member.client.close()
                member.end_calls()

    def reconnect(self) -> None:
        """Make every channel anew; calls under way fail."""
        with self._lock:
            if not self._is_closed:
                self.reconnects += 1
                for member in self._members:
                    self._replace_client(member)

    def read(self, action: Callable[[Client], T], *, rounds: int = 2) -> T:
        """Return what ``action`` returns; it may be done more than once.

        The endpoints are tried in turn, ``rounds`` times, starting with the
        one that answered last. Raises StoreUnavailableError or
        StoreAccessError.
        """
        most = rounds * len(self._members)
        give_up_at = self._clock() + self._config.timeout_s
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_another_try),
            stop=lambda call: call.attempt_number >= most or self._clock() >= give_up_at,
            wait=lambda _: self._uniform(0, 0.05),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            result: T = retrying(self._attempt, action)
        except (CompactedError, GoneError):
            raise
        except StoreUnavailableError as exc:
            if len(self._members) == 1:
                raise
            msg = f"no etcd of {self._config.shown} can be used; the last one: {exc}"
            raise StoreUnavailableError(msg) from exc
        return result

    def write(self, action: Callable[[Client], T]) -> T:
        """Return what ``action`` returns; it is done at most once.

        Raises OutcomeUnknownError when it may have been done and the answer
        is lost.
        """
        try:
            return self._attempt(action)
        except (CompactedError, GoneError, OutcomeUnknownError):
            raise
        except StoreUnavailableError as exc:
            raise OutcomeUnknownError(str(exc)) from exc

    def member(self) -> Member:
        """Return the endpoint that answered last, for a stream of one's own."""
        with self._lock:
            return self._members[self._current]

    def on_member(self, member: Member, action: Callable[[Client], T]) -> T:
        """Return what ``action`` returns on that very endpoint.

        Authenticates and, when the token has run out, does so again once.
        """
        metadata = self._login(member)
        try:
            return self._call(member, action)
        except TokenError:
            if self._config.username is None:
                raise
            self._login(member, stale=metadata)
            return self._call(member, action)

    def failed(self, member: Member, error: StoreError) -> None:
        """Turn to the next endpoint.

        A connection that went silent is made anew, and so is one whose
        certificates were replaced on disk.
        """
        with self._lock:
            if self._is_closed:
                return
            is_outdated = member.credentials is not self._credentials()
            if is_outdated or isinstance(error, StaleConnectionError):
                self._replace_client(member)
            if self._members[self._current] is member:
                self._current = (self._current + 1) % len(self._members)

    def _replace_client(self, member: Member) -> None:
        stale, member.client = member.client, self._client(member.url)
        member.credentials = self._credentials()
        stale.close()
        member.end_calls()

    def _attempt(self, action: Callable[[Client], T]) -> T:
        member = self.member()
        try:
            return self.on_member(member, action)
        except StoreError as exc:
            if _is_worth_another_try(exc):
                self.failed(member, exc)
            raise

    def _call(self, member: Member, action: Callable[[Client], T]) -> T:
        try:
            return action(member.client)
        except CALL_ERRORS as exc:
            raise translate(exc, member.url) from exc
        except ValueError as exc:  # gRPC's word for a channel that was closed
            msg = f"etcd at {member.url}: {exc}"
            raise StoreUnavailableError(msg) from exc

    def _login(self, member: Member, stale: Metadata | None = None) -> Metadata:
        """Return the token to send; a new one when there is none or only ``stale``."""
        if self._config.username is None:
            return ()
        with self._lock:
            if self._metadata is not None and self._metadata != stale:
                member.client.metadata = self._metadata
                return self._metadata
            client = member.client
        request = rpc.AuthenticateRequest(
            name=self._config.username, password=self._config.password or ""
        )
        try:
            answer = client.authstub.Authenticate(request, self._attempt_s)
            # A token goes along as metadata: over plaintext gRPC refuses call credentials.
            metadata: Metadata = (("token", str(answer.token)),)
        except CALL_ERRORS as exc:
            if "authentication is not enabled" not in status_of(exc)[1]:
                raise translate(exc, member.url) from exc
            metadata = ()
        with self._lock:
            self._metadata = metadata
            for each in self._members:
                each.client.metadata = metadata
        return metadata

    def _client(self, url: str) -> Client:
        client = self._dial(url)
        client.metadata = self._metadata or None
        return client


class _Certificates:
    """gRPC's credentials, made of the certificate files as they now are."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self._seen = certificate_stamps(config)
        self._credentials = _credentials(config)

    def credentials(self) -> object:
        """Return the credentials; others when the files were replaced and can be used."""
        stamps = certificate_stamps(self._config)
        if stamps != self._seen:
            self._seen = stamps
            try:
                self._credentials = _credentials(self._config)
                log.info("certificate files changed; new connections use them")
            except UsageError as exc:
                log.warning("certificate files changed and cannot be used: %s", exc)
        return self._credentials


class _GrpcDial:
    """Makes etcd3's clients."""

    def __init__(self, certificates: _Certificates, timeout_s: float) -> None:
        self._certificates = certificates
        self._timeout_s = timeout_s

    def __call__(self, url: str) -> Client:
        address = parse_endpoint(url)
        endpoint = etcd3.Endpoint(
            address.host,
            address.port,
            secure=address.is_secure,
            creds=self._certificates.credentials(),
            # Never refuse an endpoint because it failed before: etcd3 would do so
            # for 300 s, and with 0 still while the wall clock is behind.
            time_retry=float("-inf"),
            opts=_CALL_OPTIONS,
        )
        return etcd3.MultiEndpointEtcd3Client([endpoint], timeout=self._timeout_s)


def _is_worth_another_try(error: BaseException) -> bool:
    """Return whether another endpoint, or the same one a moment later, may do better.

    A certificate may be wrong for one member only; a refused user is refused
    by all.
    """
    if isinstance(error, CompactedError | GoneError):
        return False
    return isinstance(error, StoreUnavailableError | CertificateError)


def _credentials(config: EtcdConfig) -> Any:
    files = read_certificates(config)
    try:
        return grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)
    except (ValueError, TypeError) as exc:
        msg = f"--etcd-cafile, --etcd-certfile, --etcd-keyfile: {exc}"
        raise UsageError(msg) from exc
