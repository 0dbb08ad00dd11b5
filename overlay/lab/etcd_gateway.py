"""etcd from outside, through its JSON gateway: what somebody else does to the store.

Deliberately not the product's own client, so that neither can hide the
other's mistakes (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/).
"""

import base64
import http.client
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from overlay.lab import netns
from overlay.lab.errors import LabError

_TIMEOUT_S: Final = 5.0
_STATUS_TIMEOUT_S: Final = 1.0
_MOST_OPS: Final = 100  # in a transaction; etcd's own limit is 128


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key's value, and the etcd lease that it hangs on; 0 for none."""

    value: bytes
    lease_id: int


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What a member says of itself."""

    member_id: int
    leader_id: int
    revision: int

    @property
    def is_leader(self) -> bool:
        """Return whether this member leads."""
        return self.member_id == self.leader_id


class EtcdGateway:
    """Calls to one of ``endpoints``, made from within ``namespace``.

    The last is tried first: agents talk to the first one, so what happens to
    theirs need not hold up ours.
    """

    def __init__(self, namespace: str, endpoints: Sequence[str]) -> None:
        self._namespace = namespace
        self._endpoints = tuple(reversed(endpoints))
        self._user: tuple[str, str] | None = None
        self._token = ""

    def put(self, values: Mapping[str, bytes], lease_id: int = 0) -> None:
        """Put keys, a hundred in a transaction; repeating it is safe. Raises LabError."""
        self._transact(
            {"requestPut": {"key": _b64(key), "value": _b64(value), "lease": str(lease_id)}}
            for key, value in values.items()
        )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete keys, a hundred in a transaction; repeating it is safe. Raises LabError."""
        self._transact({"requestDeleteRange": {"key": _b64(key)}} for key in keys)

    def under(self, prefix: str) -> dict[str, StoredKey]:
        """Return every key below ``prefix``, by what follows it. Raises LabError.

        The read is linearizable: it succeeds only where there is a quorum.
        """
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        answer = self._call("/v3/kv/range", {"key": _b64(prefix), "range_end": _b64(end)})
        found = {}
        for item in answer.get("kvs", ()):
            key = base64.b64decode(item["key"]).decode().removeprefix(prefix)
            value = base64.b64decode(item.get("value", ""))
            found[key] = StoredKey(value, int(item.get("lease", 0)))
        return found

    def compact(self) -> None:
        """Forget all that came before now. Raises LabError."""
        answer = self._call("/v3/kv/range", {"key": _b64("/")})
        self._call("/v3/kv/compaction", {"revision": answer["header"]["revision"]})

    def revoke(self, lease_id: int) -> None:
        """End an etcd lease and with it its keys, as its expiry would. Raises LabError."""
        self._call("/v3/lease/revoke", {"ID": str(lease_id)})

    def enable_auth(self, name: str, password: str) -> None:
        """Have etcd ask for a login, and log in from here on. Raises LabError."""
        self._call("/v3/auth/user/add", {"name": name, "password": password})
        self._call("/v3/auth/role/add", {"name": "root"})
        self._call("/v3/auth/user/grant", {"user": name, "role": "root"})
        self._call("/v3/auth/enable", {})
        self._user = (name, password)

    def disable_auth(self) -> None:
        """Have etcd ask for no login any more, and forget who could. Raises LabError."""
        if self._user is None:
            return
        name, _ = self._user
        self._call("/v3/auth/disable", {})
        self._user, self._token = None, ""
        self._call("/v3/auth/user/delete", {"name": name})
        self._call("/v3/auth/role/delete", {"role": "root"})

    def status(self, endpoint: str) -> MemberStatus | None:
        """Return what one member says; None when it does not answer."""
        try:
            answer = self._post(endpoint, "/v3/maintenance/status", {}, _STATUS_TIMEOUT_S)
        except (OSError, http.client.HTTPException, LabError, ValueError):
            return None
        header = answer["header"]
        revision = int(header.get("revision", 0))
        return MemberStatus(int(header["member_id"]), int(answer.get("leader", 0)), revision)

    def move_leader(self, leader: str, member_id: int) -> None:
        """Make the leader, at its endpoint, hand over to another member. Raises LabError."""
        self._post(
            leader, "/v3/maintenance/transfer-leadership", {"targetID": str(member_id)}, _TIMEOUT_S
        )

    def _transact(self, ops: Iterable[Mapping[str, Any]]) -> None:
        waiting = list(ops)
        for first in range(0, len(waiting), _MOST_OPS):
            self._call("/v3/kv/txn", {"success": waiting[first : first + _MOST_OPS]})

    def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        problems = []
        for endpoint in self._endpoints:
            try:
                if self._user is not None:  # each time: a restart of etcd ends the tokens
                    name, password = self._user
                    login = {"name": name, "password": password}
                    answer = self._post(endpoint, "/v3/auth/authenticate", login, _TIMEOUT_S)
                    self._token = answer["token"]
                return self._post(endpoint, path, body, _TIMEOUT_S)
            except (OSError, http.client.HTTPException, LabError, ValueError) as exc:
                problems.append(f"{endpoint}: {exc}")
        msg = f"etcd {path}: {'; '.join(problems)}"
        raise LabError(msg)

    def _post(
        self, endpoint: str, path: str, body: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        place = urlsplit(endpoint)

        def ask() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(
                place.hostname or "", place.port, timeout=timeout_s
            )
            try:
                headers = {"Authorization": self._token} if self._token else {}
                connection.request("POST", path, json.dumps(body), headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        code, content = netns.inside(self._namespace, ask)
        if code != http.client.OK:
            msg = f"status {code}: {content.decode(errors='replace').strip()[:200]}"
            raise LabError(msg)
        document: dict[str, Any] = json.loads(content)
        return document


def _b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()
