"""Whether a thread that hangs is found, and how ``/healthz`` says so."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, cast

import pytest

from overlay.agent.heartbeat import Heartbeats
from overlay.agent.http import HttpServer
from overlay.agent.status import Status
from overlay.store.kube_crew import Crew


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_thread_that_does_not_ask_any_more_is_stuck() -> None:
    clock, stop = Clock(), threading.Event()
    beats = Heartbeats(clock)
    watch, _ = beats.of("lease watch", stop, 60), beats.of("lessee", stop, 600)
    clock.now += 61
    assert beats.stuck() == ["lease watch for 61 s"]
    assert not watch.is_set()
    assert beats.stuck() == []
    clock.now += 61
    watch.wait(0)
    assert beats.stuck() == []


def test_other_threads_questions_are_no_sign_of_life() -> None:
    clock, stop = Clock(), threading.Event()
    beats = Heartbeats(clock)
    watch = beats.of("lease watch", stop, 60)
    clock.now += 61
    thread = threading.Thread(target=watch.is_set)
    thread.start()
    thread.join()
    assert beats.stuck() == ["lease watch for 61 s"]
    stop.set()
    assert watch.is_set()


def test_thread_of_a_crew_that_hangs_is_named_and_one_that_ended_is_not() -> None:
    clock, stop = Clock(), threading.Event()
    beats = Heartbeats(clock)
    watch = beats.of("lease watch", stop, 60)
    crew, hanging, are_begun = Crew(stop, watch), threading.Event(), threading.Barrier(3)

    def hang() -> None:
        are_begun.wait(10)
        hanging.wait(10)

    def work() -> None:
        are_begun.wait(10)
        asked.wait(10)
        crew.is_set()
        told.set()
        crew.wait(10)

    asked, told = threading.Event(), threading.Event()
    crew.start(hang, "kube-keys")
    crew.start(work, "kube-look")
    are_begun.wait(10)
    clock.now += 61
    asked.set()
    assert told.wait(10)
    watch.is_set()
    assert beats.stuck() == ["kube-keys for 61 s"]
    stop.set()
    hanging.set()
    crew.join(10)
    clock.now += 61
    watch.is_set()
    assert beats.stuck() == []


@contextmanager
def served(stuck: list[str]) -> Iterator[int]:
    server = HttpServer(
        ip_address("127.0.0.1"), 0, Status(), lambda: stuck, list, cast("Any", None)
    )
    try:
        yield server._socket.getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize(
    ("stuck", "said"),
    [
        ([], (200, "ok\n")),
        (["lessee for 700 s", "reconciler for 130 s"],
         (503, "stuck: lessee for 700 s, reconciler for 130 s\n")),
    ],
)  # fmt: skip
def test_healthz_names_the_threads_that_hang(stuck: list[str], said: tuple[int, str]) -> None:
    with served(stuck) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        assert (answer.status, answer.read().decode()) == said
        connection.close()
