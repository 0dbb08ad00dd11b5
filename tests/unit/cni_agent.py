"""A small agent for tests of the CNI plugin: it takes requests apart and answers what it is told.

It refuses what is not version 1 of the protocol (docs/cni-protocol.md) to the byte.
"""

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

MAGIC: Final = b"OVL1"
HEADER: Final = struct.Struct("<4sIII")
ANSWER: Final = struct.Struct("<4sII")
_TIMEOUT_S: Final = 20.0

Serve = Callable[[socket.socket], None]


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came; ``netns`` is the inode of the namespace that came along.

    ``socket_in`` is that of the namespace which the netlink socket lives in,
    ``sysctls`` are the interfaces that the directory of sysctls knows.
    """

    data: bytes
    variables: dict[str, bytes]
    input: bytes
    netns: int | None
    socket_in: int | None = None
    sysctls: frozenset[str] = frozenset()


def answer(output: bytes, status: int = 0) -> bytes:
    """Return the bytes of an answer."""
    return ANSWER.pack(MAGIC, status, len(output)) + output


def receive(client: socket.socket) -> Received:
    """Read one request up to its end. Raises AssertionError where it breaks the protocol."""
    data, control, _flags, _address = client.recvmsg(65536, socket.CMSG_SPACE(4 * 8))
    descriptors = [
        number
        for level, kind, payload in control
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (number,) in struct.iter_unpack("i", payload)
    ]
    try:
        while part := client.recv(65536):
            data += part
        magic, flags, env_length, input_length = HEADER.unpack_from(data)
        assert magic == MAGIC
        assert flags == (1 << len(descriptors)) - 1 <= 7
        netns = os.fstat(descriptors[0]).st_ino if descriptors else None
        socket_in = _namespace_of_socket(descriptors[1]) if flags & 2 else None
        # By its descriptor, and read here, outside of the namespace.
        sysctls = frozenset(os.listdir(descriptors[2]) if flags & 4 else ())  # noqa: PTH208
    finally:
        for number in descriptors:
            os.close(number)
    assert len(data) == HEADER.size + env_length + input_length
    environment = data[HEADER.size : HEADER.size + env_length]
    assert environment.endswith(b"\0")
    pairs = [entry.partition(b"=") for entry in environment[:-1].split(b"\0")]
    assert all(name.startswith(b"CNI_") and sign and value for name, sign, value in pairs)
    variables = {name.decode(): value for name, _sign, value in pairs}
    assert len(variables) == len(pairs)
    rest = data[HEADER.size + env_length :]
    return Received(data, variables, rest, netns, socket_in, sysctls)


def _namespace_of_socket(descriptor: int) -> int:
    """Return the inode of the namespace that an rtnetlink socket lives in; it stays open."""
    with socket.socket(fileno=os.dup(descriptor)) as given:
        assert (given.family, given.proto) == (socket.AF_NETLINK, socket.NETLINK_ROUTE)
        assert given.getsockname() == (0, 0), "whoever uses it names it"
        namespace = fcntl.ioctl(given, 0x894C)  # SIOCGSKNS, linux/sockios.h
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


class FakeAgent:
    """Listens from the start to ``close``; each client gets ``serve``, or the answer it has."""

    def __init__(self, path: Path, output: bytes = b"{}\n", serve: Serve | None = None) -> None:
        self.path = path
        self.received: list[Received] = []
        self.clients = 0
        self._answer = answer(output)
        self._serve = serve
        self._errors: list[BaseException] = []
        self._closed = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and raise what clients did wrong."""
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        if self._errors:
            raise self._errors[0]

    def stay_silent(self, _client: socket.socket) -> None:
        """Keep a client waiting until the agent closes."""
        self._closed.wait(_TIMEOUT_S)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.clients += 1
            thread = threading.Thread(target=self._handle, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _handle(self, client: socket.socket) -> None:
        with client:
            client.settimeout(_TIMEOUT_S)
            try:
                if self._serve is not None:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        self._serve(client)
                    return
                self.received.append(receive(client))
                client.sendall(self._answer)
            except BaseException as exc:  # noqa: BLE001 - raised again by close
                self._errors.append(exc)
