"""The store's own history, from its first revision, as one watch past the product's code."""

import threading
import time
from collections.abc import Sequence
from typing import Any, Final, Self

import etcd3.etcdrpc as rpc
import grpc

from overlay.model.lease import parse_attributes
from overlay.model.subnet import parse_subnet_key
from tests.etcd.support import raw_client
from tests.history.revisions import Change

_PATIENCE_S: Final = 60.0
_DELETE: Final = 1  # mvccpb.Event.EventType


class HistoryWatch:
    """Collects every change under ``prefix`` in the order of revisions, with the time it was told.

    A break is taken up at the revision after the last one.
    """

    def __init__(self, endpoints: Sequence[str], prefix: str) -> None:
        self._clients = [raw_client(endpoint) for endpoint in endpoints]
        self._start = f"{prefix}/subnets/".encode()
        self._end = f"{prefix}/subnets0".encode()  # "0" follows "/"
        self._changes: list[Change] = []
        self._revision = 0  # everything up to here is known
        self._is_over = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join(10)
        for client in self._clients:
            client.close()

    def all(self) -> list[Change]:
        """Return every change up to now. Raises AssertionError when it does not come so far."""
        deadline = time.monotonic() + _PATIENCE_S
        # A write of nothing of ours: once it is told, so is all before it.
        revision = self._mark(deadline)
        while self._revision < revision:
            assert time.monotonic() < deadline, f"watch at {self._revision} of {revision}"
            time.sleep(0.02)
        return list(self._changes)

    def _mark(self, deadline: float) -> int:
        while True:
            for client in self._clients:
                try:
                    answer = client.put(self._start, b"")
                except grpc.RpcError:
                    continue
                return int(answer.header.revision)
            assert time.monotonic() < deadline, "no member takes a write"

    def _run(self) -> None:
        turn = 0
        while not self._is_over.is_set():
            client = self._clients[turn % len(self._clients)]
            turn += 1
            create = rpc.WatchCreateRequest(
                key=self._start, range_end=self._end, start_revision=self._revision + 1
            )
            requests = iter([rpc.WatchRequest(create_request=create)])
            try:
                stub = rpc.WatchStub(client.channel)
                self._call = stub.Watch(_open_ended(requests, self._is_over), timeout=300)
                for answer in self._call:
                    self._take(answer)
            except grpc.RpcError:
                self._is_over.wait(0.1)

    def _take(self, answer: Any) -> None:
        now_s = time.monotonic()
        assert not answer.compact_revision
        for event in answer.events:
            key = bytes(event.kv.key)[len(self._start) :].decode()
            revision = int(event.kv.mod_revision)
            if key and event.type == _DELETE:
                self._changes.append(Change(revision, parse_subnet_key(key), seen_s=now_s))
            elif key:
                owner = parse_attributes(key, bytes(event.kv.value)).owner
                assert owner is not None
                self._changes.append(
                    Change(
                        revision,
                        parse_subnet_key(key),
                        owner.node_id,
                        int(owner.claimed_at),
                        now_s,
                    )
                )
            self._revision = max(self._revision, revision)


def _open_ended(requests: Any, is_over: threading.Event) -> Any:
    yield from requests
    is_over.wait()  # etcd takes the end of the requests for the end of the watch
