"""A listening socket outlives what happens to its clients, and ends when told."""

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlay.agent.listen import Crew, clients, stop_listening
from tests.kernel.netns import eventually


@contextlib.contextmanager
def crew(place: Path, serve: Callable[[socket.socket], None]) -> Iterator[Path]:
    path = place / "crew"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(100)
    Crew(listener, serve, f"crew {path}")
    try:
        yield path
    finally:
        stop_listening(listener)
        eventually(lambda: crew_size(path) == 0, timeout_s=20)


def crew_size(path: Path) -> int:
    return sum(thread.name == f"crew {path}" for thread in threading.enumerate())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """Answer every client with ``hello``, and keep it until the test ends."""
    path = tmp_path / "socket"
    kept: list[socket.socket] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)

    def serve() -> None:
        for client, _ in clients(listener):
            kept.append(client)
            client.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    yield path, listener
    with contextlib.suppress(OSError):
        stop_listening(listener)
    thread.join(10)
    for client in kept:
        client.close()
    assert not thread.is_alive()


def ask(path: Path, client: socket.socket) -> bytes:
    client.settimeout(10)
    client.connect(str(path))
    return client.recv(16)


def test_it_ends_while_it_waits(served: tuple[Path, socket.socket]) -> None:
    path, listener = served
    with socket.socket(socket.AF_UNIX) as client:
        assert ask(path, client) == b"hello"
    stop_listening(listener)
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(path))


def test_without_free_descriptors_clients_wait_and_are_served(
    served: tuple[Path, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = served
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    with contextlib.ExitStack() as stack:
        # An accept that waits has its descriptor already: one of them may be served at once.
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            for client in waiting:
                client.connect(str(path))
            eventually(lambda: "a client waits: Too many open files" in caplog.text, timeout_s=20)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in waiting:
            client.settimeout(20)
            assert client.recv(16) == b"hello"


def test_clients_at_once_do_not_wait_for_one_another(tmp_path: Path) -> None:
    all_here = threading.Barrier(40)

    def serve(client: socket.socket) -> None:
        with client:
            all_here.wait(20)
            client.sendall(b"hello")

    with crew(tmp_path, serve) as path, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
        for client in waiting:
            client.settimeout(20)
            client.connect(str(path))
        assert [client.recv(16) for client in waiting] == [b"hello"] * 40
        eventually(lambda: crew_size(path) <= 17, timeout_s=20, what="a crew that is small again")


def test_clients_one_after_another_share_a_few_threads(tmp_path: Path) -> None:
    threads: set[threading.Thread] = set()

    def serve(client: socket.socket) -> None:
        threads.add(threading.current_thread())
        with client:
            client.sendall(b"hello")

    with crew(tmp_path, serve) as path:
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as client:
                assert ask(path, client) == b"hello"
    assert len(threads) < 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_fault_with_one_client_is_no_other_clients(tmp_path: Path) -> None:
    def serve(client: socket.socket) -> None:
        with client:
            if client.recv(16) == b"bad":
                raise ZeroDivisionError
            client.sendall(b"hello")

    with crew(tmp_path, serve) as path:
        for word in (b"bad",) * 20 + (b"good",):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                client.sendall(word)
                assert client.recv(16) == (b"" if word == b"bad" else b"hello")
