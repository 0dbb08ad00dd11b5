"""The fabric's key in a Secret of Kubernetes: see docs/decisions/0008 and 0009.

Who may read the Secret may ask the agents. An account that may not leaves the
fabric whole and the questions unanswered, with the permission that is missing.
"""

import base64
import binascii
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Secret

from overlay.model.errors import LeaseFormatError
from overlay.model.fabric_key import (
    FABRIC_KEY_BYTES,
    NO_KEYS,
    FabricKeyError,
    FabricKeys,
    format_fabric_key,
    parse_fabric_key,
)
from overlay.store.base import KEY_OVERLAP_S, ConfigConflictError
from overlay.store.kube_client import MERGE, Kind, KubeClient
from overlay.store.kube_errors import ConflictError, NotThereError
from overlay.store.kube_watch import Found, read_object

NAME: Final = "overlay-fabric-key"
_KEY: Final = "key"
_PREVIOUS: Final = "previous"


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """What the Secret holds, as written; no representation of it shows a key."""

    data: dict[str, bytes]

    def __repr__(self) -> str:
        return f"StoredKeys({', '.join(sorted(self.data))})"

    def keys(self) -> FabricKeys:
        """Return the keys that can be read."""
        found: dict[str, bytes] = {}
        error: str | None = None
        for name in (_KEY, _PREVIOUS):
            if name in self.data:
                try:
                    found[name] = parse_fabric_key(self.data[name])
                except FabricKeyError as exc:
                    error = str(exc)
        return FabricKeys(found.get(_KEY), found.get(_PREVIOUS), error)


class _Secret(msgspec.Struct):
    data: dict[str, str] | None = None


def read_secret(raw: bytes) -> StoredKeys:
    """Return what a Secret holds. Raises LeaseFormatError, with nothing of it in the text."""
    try:
        data = msgspec.json.decode(raw, type=_Secret).data or {}
        return StoredKeys({name: base64.b64decode(value) for name, value in data.items()})
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error) as exc:
        msg = f"Secret {NAME} cannot be read: {type(exc).__name__}"
        raise LeaseFormatError(msg) from exc


SECRETS: Final = Kind(Secret, "secrets", read_secret)


class FabricSecret:
    """Reads and writes the key; any thread may call.

    A Secret has no time to live: the key before the newest counts for
    KEY_OVERLAP_S from when this process saw it change, on ``clock``, and not
    at all for one that started later.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: bytes | None = None  # that was seen last
        self._changed_at = float("-inf")

    def counting(self, found: Found[StoredKeys] | None) -> FabricKeys:
        """Return the keys of ``found`` that count now."""
        if found is None:
            return NO_KEYS
        if found.value is None or found.error is not None:
            return FabricKeys(error=found.error)
        keys = found.value.keys()
        with self._lock:
            if keys.newest is not None and keys.newest != self._newest:
                if self._newest is not None:
                    self._changed_at = self._clock()
                self._newest = keys.newest
            is_over = self._clock() - self._changed_at >= KEY_OVERLAP_S
        return replace(keys, previous=None) if is_over else keys

    def read(self) -> Found[StoredKeys] | None:
        """Return the Secret as it stands, None where there is none. Raises StoreError."""
        try:
            raw = self._client.call("get", SECRETS, name=NAME, namespace=self._namespace())
            return read_object(SECRETS, raw)
        except NotThereError:
            return None
        except ValueError as exc:
            return Found(NAME, "", 0, None, f"Secret {NAME} cannot be read: {exc}")

    def make(self) -> bool:
        """Write a key where there is none; return whether this call did. Raises StoreError."""
        if self.read() is not None:
            return False
        meta = ObjectMeta(name=NAME, namespace=self._namespace())
        body = Secret(metadata=meta, data={_KEY: _spelled(_new_key())})
        try:
            self._client.call("post", SECRETS, namespace=self._namespace(), body=body)
        except ConflictError:
            return False
        return True

    def rotate(self) -> None:
        """Write a new key; the one before counts for KEY_OVERLAP_S more. Raises StoreError."""
        before = self.read()
        if before is None and self.make():
            return
        data: dict[str, str | None] = {_KEY: _spelled(_new_key()), _PREVIOUS: None}
        self.counting(before)  # so that what it replaces counts here too
        stored = before.value if before is not None else None
        if stored is not None and stored.keys().newest is not None:
            data[_PREVIOUS] = _spelled(stored.data[_KEY])
        meta = {"resourceVersion": str(before.revision)} if before is not None else {}
        try:
            self._client.call(
                "patch",
                SECRETS,
                name=NAME,
                namespace=self._namespace(),
                body={"metadata": meta, "data": data},
                content_type=MERGE,
            )
        except ConflictError as exc:
            msg = "the fabric's key was changed by somebody else in this moment; try again"
            raise ConfigConflictError(msg) from exc


def _new_key() -> bytes:
    return format_fabric_key(secrets.token_bytes(FABRIC_KEY_BYTES))


def _spelled(value: bytes) -> str:
    return base64.b64encode(value).decode()
