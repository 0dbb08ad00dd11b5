"""The Kubernetes API's refusals, in the words of the lease store's contract.

Each message is one line: what was asked of whom, what the API server said,
which permission or flag to look at. Tokens are in none of them.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from overlay.store.base import (
    PermissionMissingError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)

_DETAIL_LIMIT: Final = 300  # characters
_LONGEST_WAIT_S: Final = 60.0  # that a server may tell us to stay away
# https://kubernetes.io/docs/reference/using-api/api-concepts/ ("410 Gone", "Retry-After").
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_GONE: Final = 410


class KubeUnavailableError(StoreUnavailableError):
    """The API server does not answer, or not now; ``wait_s`` is how long it wants to be left."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        self.wait_s = min(wait_s, _LONGEST_WAIT_S)
        super().__init__(text)


class ForbiddenError(PermissionMissingError):
    """The account may not do that."""


class NotThereError(StoreError):
    """There is no object of that name."""


class ConflictError(StoreUnavailableError):
    """The object changed since it was read: read it again."""


class ResourceGoneError(StoreUnavailableError):
    """The revision that was asked for is not to be had: list again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, in the words of a role: which verb on which resource."""

    verb: str
    plural: str  # such as "nodes" or "nodes/status"
    name: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.plural}{' ' + self.name if self.name else ''}{where}"


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct):
    retryAfterSeconds: int = 0  # noqa: N815 - the API's name
    causes: list[_Cause] | None = None


class Status(msgspec.Struct):
    """The API's account of a failure (meta/v1 Status), what is used of it."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


def parse_status(body: bytes, code: int) -> Status:
    """Return the Status in ``body``; a proxy's page or nothing gives one with ``code`` alone."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Status(code=code, message=body[:_DETAIL_LIMIT].decode(errors="replace"))
    status.code = status.code or code
    return status


def refusal(status: Status, asked: Asked, url: str, retry_after: str = "") -> StoreError:
    """Return the error for an answer that is no success.

    ``retry_after`` is the header of that name, in seconds.
    """
    said = " ".join(status.message.split())[:_DETAIL_LIMIT] or status.reason or "no reason given"
    about = f"Kubernetes API at {url}: {asked}: {said} ({status.code})"
    if status.code == _UNAUTHORIZED:
        return StoreAccessError(
            f"{about}; the token or certificate is not taken: look at the service account, or at "
            "--kubeconfig-file"
        )
    if status.code == _FORBIDDEN:
        return ForbiddenError(
            f"{about}; this account may not {asked.verb} {asked.plural}: give its ClusterRole the "
            f"verb {asked.verb} on {asked.plural} (see docs/kubernetes-mode.md)"
        )
    if status.code == _NOT_FOUND:
        return NotThereError(about)
    if status.code == _CONFLICT:
        return ConflictError(about)
    causes = status.details.causes or [] if status.details is not None else []
    # A server put back to an older state answers so until it has caught up with our revision.
    if status.code == _GONE or any(c.reason == "ResourceVersionTooLarge" for c in causes):
        return ResourceGoneError(about)
    hinted = status.details.retryAfterSeconds if status.details is not None else 0
    wait_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 9 else hinted
    return KubeUnavailableError(about, wait_s)


def no_answer(exc: Exception, asked: Asked, url: str) -> StoreError:
    """Return the error for a request that got no answer, or half of one."""
    text = " ".join(str(exc).split())[:_DETAIL_LIMIT] or type(exc).__name__
    about = f"Kubernetes API at {url}: {asked}: {text}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return StoreAccessError(
            f"{about}; name the certificate authority of the API server in --kubeconfig-file, or "
            "leave --kube-api-url out"
        )
    if "alert" in text and ("certificate" in text or "unknown ca" in text):
        return StoreAccessError(f"{about}; the client certificate in --kubeconfig-file is refused")
    return KubeUnavailableError(about)
