"""etcd through its JSON gateway: one connection, nothing imported that starts threads.

Measured (2026-11): a put is answered after 0.15 ms, as fast as through gRPC.
https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/
"""

import base64
import http.client
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_BATCH: Final = 100  # operations; etcd takes 128 in one transaction
_RECEIVED: Final = re.compile(
    r'^grpc_server_msg_received_total\{.*grpc_method="(\w+)".*\} (\S+)$', re.MULTILINE
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_TIMEOUT_S: Final = 30.0


class Gateway:
    """One connection, opened in the namespace of the thread that makes it."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        self._connection.connect()
        self.socket = self._connection.sock

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def put(self, key: str, value: bytes, lease: int = 0) -> None:
        """Put one key."""
        self._ask("kv/put", _put(key, value, lease))

    def put_all(self, pairs: Mapping[str, bytes], lease: int = 0) -> None:
        """Put keys, as many in a transaction as etcd takes."""
        self._write([{"requestPut": _put(k, v, lease)} for k, v in pairs.items()])

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete keys, as many in a transaction as etcd takes."""
        self._write([{"requestDeleteRange": {"key": _b64(key)}} for key in keys])

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = {"key": _b64(prefix), "range_end": _b64(end), "keys_only": True}
        answer = self._ask("kv/range", body)
        return [base64.b64decode(each["key"]).decode() for each in answer.get("kvs", ())]

    def revision(self, key: str) -> int:
        """Return the revision of a key's last write, 0 where there is no such key."""
        found = self._ask("kv/range", {"key": _b64(key), "keys_only": True}).get("kvs", ())
        return max((int(each["mod_revision"]) for each in found), default=0)

    def grant(self, ttl_s: int) -> int:
        """Return a new lease of etcd's."""
        return int(self._ask("lease/grant", {"TTL": ttl_s})["ID"])

    def received(self) -> dict[str, int]:
        """Return how many messages etcd has received, by gRPC method; they count on streams too."""
        self._connection.request("GET", "/metrics")
        return parse_metrics(self._connection.getresponse().read().decode())

    def put_request(self, key: str, value: bytes, lease: int = 0) -> bytes:
        """Return a put as it goes on the wire, for one who times its answer himself."""
        body = json.dumps(_put(key, value, lease)).encode()
        head = f"POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def _write(self, operations: list[dict[str, Any]]) -> None:
        for first in range(0, len(operations), _BATCH):
            self._ask("kv/txn", {"success": operations[first : first + _BATCH]})

    def _ask(self, verb: str, body: Mapping[str, Any]) -> Any:
        self._connection.request("POST", f"/v3/{verb}", json.dumps(body))
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            msg = f"etcd {verb}: {text.decode(errors='replace')}"
            raise RuntimeError(msg)
        return json.loads(text)


def is_whole(answer: bytes) -> bool:
    r"""Return whether an answer to a put has come to its end. Raises RuntimeError for a refusal.

    >>> is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")
    False
    """
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        msg = f"etcd refused a put: {answer.decode(errors='replace')}"
        raise RuntimeError(msg)
    length = _LENGTH.search(head)
    return length is not None and len(body) >= int(length[1])


def parse_metrics(text: str) -> dict[str, int]:
    """Return the messages received by gRPC method, in Prometheus' text form."""
    found: dict[str, int] = {}
    for method, value in _RECEIVED.findall(text):
        found[method] = found.get(method, 0) + int(float(value))
    return found


def _put(key: str, value: bytes, lease: int) -> dict[str, Any]:
    return {
        "key": _b64(key),
        "value": base64.b64encode(value).decode(),
        **({"lease": lease} if lease else {}),
    }


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
