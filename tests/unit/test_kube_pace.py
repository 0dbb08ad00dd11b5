"""How often the Kubernetes API is asked while it gives no answer or refuses: by a clock of ours."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lightkube.resources.core_v1 import Secret

from overlay.store.base import StoreAccessError, StoreError
from overlay.store.kube_client import Kind, KubeClient
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_errors import ForbiddenError, KubeUnavailableError
from overlay.store.kube_watch import Found, KubeWatch, Pace

HOUR_S = 3600.0
THINGS = Kind(Secret, "secrets", lambda raw: str(raw))
EMPTY = b'{"metadata": {"resourceVersion": "7"}, "items": []}'


class Clock:
    """Time that passes by waiting alone; it is also the signal to stop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.is_over = False

    def __call__(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return self.is_over

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.now += timeout
        return self.is_over


class Server(KubeClient):
    """Refuses with ``error`` until ``until``; a listing that it answers ends the watch."""

    def __init__(self, clock: Clock, error: StoreError, until: float) -> None:
        super().__init__(KubeAccess("n1", net_config_path=Path("/none")), clock)
        self._time, self._error, self._until = clock, error, until
        self.reconnects = 0

    def call(self, *_words: Any, **_more: Any) -> bytes:
        if self._time.now < self._until:
            raise self._error
        self._time.is_over = True
        return EMPTY

    def reconnect(self) -> None:
        self.reconnects += 1


def ignore(_objects: Mapping[str, Found[str]], _revision: int, _changed: object) -> None:
    """Take a delivery."""


def outage(
    error: StoreError, until: float, seed: int, **more: Any
) -> tuple[Clock, Server, list[StoreError | None]]:
    """Return the clock once an answer came, the server, and what trouble was told."""
    clock, troubles = Clock(), list[StoreError | None]()
    server = Server(clock, error, until)
    uniform = random.Random(seed).uniform
    watch = KubeWatch(server, THINGS, pace=Pace(), uniform=uniform, clock=clock, **more)
    watch.run(ignore, troubles.append, clock)
    clock.now -= clock.pauses.pop()  # after the answer
    return clock, server, troubles


def test_server_away_for_an_hour_is_asked_ever_more_rarely_and_found_again() -> None:
    error = KubeUnavailableError("connection refused")
    clock, server, troubles = outage(error, HOUR_S, seed=1, is_vital=True)
    longest = [min(0.2 * 2**n, 30.0) for n in range(len(clock.pauses))]
    assert all(most / 2 <= p <= most for p, most in zip(clock.pauses, longest, strict=True))
    assert HOUR_S / 30 <= len(clock.pauses) <= HOUR_S / 15 + 10
    assert troubles == [error], "once, not at each try"
    assert HOUR_S <= clock.now <= HOUR_S + 30
    assert server.reconnects == 0


def test_agents_do_not_come_in_step() -> None:
    """A thousand that lost the server in one moment ask it again all over the pause."""
    error = KubeUnavailableError("connection refused")
    after = [outage(error, 600.0, seed)[0].now for seed in range(1000)]
    by_second = [sum(int(moment) == second for moment in after) for second in range(600, 630)]
    assert max(by_second) < 100
    assert sum(count > 0 for count in by_second) > 25


def test_server_that_wants_to_be_left_is() -> None:
    clock, _, _ = outage(KubeUnavailableError("busy", wait_s=20.0), 300.0, seed=3)
    assert all(20.0 <= pause <= 45.0 for pause in clock.pauses)


@pytest.mark.parametrize(
    ("error", "is_vital", "longest_s", "reconnects"),
    [
        pytest.param(ForbiddenError("no"), False, 300.0, False, id="one part's permission"),
        pytest.param(ForbiddenError("no"), True, 30.0, True, id="everything's permission"),
        pytest.param(StoreAccessError("401"), False, 30.0, True, id="login"),
    ],
)
def test_refusal_is_asked_again(
    error: StoreError, is_vital: bool, longest_s: float, reconnects: bool
) -> None:
    clock, server, troubles = outage(error, HOUR_S, seed=4, is_vital=is_vital)
    assert longest_s / 2 <= max(clock.pauses) <= longest_s
    assert (server.reconnects > 0) == reconnects
    assert troubles == [error]
