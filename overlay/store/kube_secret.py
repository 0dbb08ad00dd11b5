"""The fabric's key in a Secret of Kubernetes: see docs/decisions/0008 and 0009.

Who may read the Secret may ask the agents. An account that may not leaves the
fabric whole and the questions unanswered, with the permission that is missing.
"""

import base64
import binascii
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Secret

from overlay.model.errors import LeaseFormatError
from overlay.model.fabric_key import (
    FABRIC_KEY_BYTES,
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
_UNTIL: Final = "previous-until"  # seconds since 1970


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """What the Secret holds, as written; no representation of it shows a key."""

    data: dict[str, bytes]

    def __repr__(self) -> str:
        return f"StoredKeys({', '.join(sorted(self.data))})"

    def counting(self, now: float) -> FabricKeys:
        """Return the keys that count at ``now``, in seconds since 1970."""
        found: dict[str, bytes] = {}
        error: str | None = None
        for name in (_KEY, _PREVIOUS):
            if name in self.data:
                try:
                    found[name] = parse_fabric_key(self.data[name])
                except FabricKeyError as exc:
                    error = str(exc)
        if not now < self._until() <= now + 2 * KEY_OVERLAP_S:  # clocks differ a little
            found.pop(_PREVIOUS, None)
        return FabricKeys(found.get(_KEY), found.get(_PREVIOUS), error)

    def _until(self) -> float:
        text = self.data.get(_UNTIL, b"")
        return float(text) if text.isdigit() and len(text) < 16 else 0.0


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
    """Reads and writes the key; ``wall_clock`` returns seconds since 1970."""

    def __init__(
        self,
        client: KubeClient,
        namespace: Callable[[], str],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._wall_clock = wall_clock

    def counting(self, found: Found[StoredKeys] | None) -> FabricKeys:
        """Return the keys of ``found`` that count now."""
        if found is None:
            return FabricKeys()
        if found.value is None or found.error is not None:
            return FabricKeys(error=found.error)
        return found.value.counting(self._wall_clock())

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
        data: dict[str, str | None] = {_KEY: _spelled(_new_key()), _PREVIOUS: None, _UNTIL: None}
        stored = before.value if before is not None else None
        if stored is not None and stored.counting(0).newest is not None:
            until = int(self._wall_clock()) + KEY_OVERLAP_S
            data |= {_PREVIOUS: _spelled(stored.data[_KEY]), _UNTIL: _spelled(str(until).encode())}
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
