"""gRPC's and etcd3's errors, in the words of the lease store's contract.

Each message is one line: the endpoint, what etcd said, which flag to look at.
Passwords and tokens are in none of etcd's answers, so in none of these.
"""

import re
from typing import Any, Final

import etcd3.exceptions
import grpc

from overlay.store.base import StoreAccessError, StoreError, StoreUnavailableError

# What leaves a call of etcd3's client; both carry the status, see ``status_of``.
CALL_ERRORS: Final = (grpc.RpcError, etcd3.exceptions.Etcd3Exception)

_TLS_WORDS: Final = ("handshake failed", "SSL_ERROR_SSL", "security handshaker", "certificate")
# gRPC puts this in front of what went wrong; the address is in our message already.
_PREAMBLE: Final = re.compile(r"failed to connect to all addresses; last error: [A-Z]+: (\S+: )?")
# The kernel's word, and gRPC's, for a connection whose packets vanish.
_SILENT_WORDS: Final = ("Connection timed out", "ping timeout", "watchdog timeout")
_DETAIL_LIMIT: Final = 200  # characters
_CODE: Final = grpc.StatusCode


class TokenError(StoreAccessError):
    """The token has run out or was made by another etcd: authenticate again."""


class CertificateError(StoreAccessError):
    """One side does not take the other's certificate; another endpoint may."""


class CompactedError(StoreUnavailableError):
    """The revision that was asked for is compacted away: list again."""


class ResyncError(StoreUnavailableError):
    """The store is not in the history that was seen last: list again."""


class GoneError(StoreUnavailableError):
    """The etcd lease that a call names has ended."""


class OutcomeUnknownError(StoreUnavailableError):
    """A transaction was sent and its answer never came: read before going on."""


class StaleConnectionError(StoreUnavailableError):
    """A connection went silent, or a call ran into its deadline: it may lead nowhere any more."""


def status_of(error: BaseException) -> tuple[Any, str]:
    """Return the gRPC status code of an error and what the other side said.

    etcd3 replaces some errors by bare ones of its own; the original one is
    then their context.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, grpc.RpcError):
        cause = cause.__context__
    if cause is None or not hasattr(cause, "code"):
        return _CODE.UNKNOWN, str(error) or type(error).__name__
    return cause.code(), str(cause.details() or "")


def translate(error: BaseException, endpoint: str) -> StoreError:
    """Return what an error of a call to ``endpoint`` means for the store's callers."""
    code, said = status_of(error)
    said = _PREAMBLE.sub("", " ".join(said.split()))
    shown = said if len(said) <= _DETAIL_LIMIT else said[: _DETAIL_LIMIT - 3] + "..."
    if code == _CODE.UNAUTHENTICATED or "revision of auth store is old" in said:
        return TokenError(f"etcd at {endpoint}: {shown}; check --etcd-username")
    if code == _CODE.PERMISSION_DENIED:
        return StoreAccessError(
            f"etcd at {endpoint}: {shown}; give the role of --etcd-username read and write "
            "on --etcd-prefix"
        )
    if "user name is empty" in said:
        return TokenError(
            f"etcd at {endpoint} asks for a user ({shown}); set --etcd-username and --etcd-password"
        )
    if "authentication failed" in said or "user name not found" in said:
        return StoreAccessError(
            f"etcd at {endpoint}: {shown}; check --etcd-username and --etcd-password"
        )
    if "has been compacted" in said:
        return CompactedError(f"etcd at {endpoint}: {shown}")
    if code == _CODE.UNAVAILABLE and any(word in said for word in _TLS_WORDS):
        return CertificateError(
            f"etcd at {endpoint}: TLS: {shown}; check --etcd-cafile, --etcd-certfile, "
            "--etcd-keyfile and the host name in --etcd-endpoints"
        )
    if code == _CODE.NOT_FOUND:
        return GoneError(f"etcd at {endpoint}: {shown}")
    if code == _CODE.DEADLINE_EXCEEDED:
        return StaleConnectionError(f"etcd at {endpoint} does not answer in time")
    if code == _CODE.UNAVAILABLE and any(word in said for word in _SILENT_WORDS):
        return StaleConnectionError(f"etcd at {endpoint} cannot be used: {shown}")
    if not said:
        shown = code.name.lower()
    if "Socket closed" in said:
        shown += " (http and https in --etcd-endpoints are not the same)"
    return StoreUnavailableError(f"etcd at {endpoint} cannot be used: {shown}")
