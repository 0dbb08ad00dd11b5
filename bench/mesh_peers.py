"""Peers that answer probes: one socket for all of them, each echo with rows of a measured mesh."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from overlay.lab import netns
from overlay.mesh.seal import TAG_BYTES
from overlay.mesh.wire import MOST_ROWS, Kind, Message, MessageError, Row, pack, unpack

_TARGET_AT: Final = struct.calcsize(f">4sBBHH{TAG_BYTES}s")  # overlay/mesh/wire.py
_KEPT_ROWS: Final = 100  # of each peer, as one that samples has them
_WAIT_S: Final = 0.2


@contextlib.contextmanager
def answering(
    namespace: str, network: str, port: int, key: bytes, tags: Sequence[bytes]
) -> Iterator[None]:
    """Answer probes to any address of ``network`` in a namespace, as the node that is asked."""
    netns.ip_batch(namespace, [f"route add local {network} dev lo"])
    ended = threading.Event()
    with netns.inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as bound:
        bound.bind(("0.0.0.0", port))  # noqa: S104 - in a namespace of its own
        bound.settimeout(_WAIT_S)
        thread = threading.Thread(target=_serve, args=(bound, key, tags, ended))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _serve(bound: socket.socket, key: bytes, tags: Sequence[bytes], ended: threading.Event) -> None:
    turns: dict[bytes, int] = {}
    while not ended.is_set():
        with contextlib.suppress(TimeoutError, MessageError):
            data, sender = bound.recvfrom(1 << 16)
            probe, _ = unpack(data, (key,), data[_TARGET_AT : _TARGET_AT + TAG_BYTES])
            turn = turns[probe.target] = turns.get(probe.target, 0) + 1
            first = tags.index(probe.target) + turn * MOST_ROWS % _KEPT_ROWS
            rows = tuple(
                Row(tags[(first + step) % len(tags)], 0.0004, 0.0002, 0.0, 0.0)
                for step in range(MOST_ROWS)
            )
            echo = Message(Kind.ECHO, probe.path, probe.target, probe.sender, probe.nonce, 0, rows)
            bound.sendto(pack(echo, key, probe.size), sender)
