"""Turns: one at a time for a key, and nothing is kept of keys that nobody works on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from overlay.agent.turns import Turns
from overlay.model.attachment import AttachmentKey

ONE, OTHER = AttachmentKey("n", "one", "eth0"), AttachmentKey("n", "other", "eth0")


def test_one_at_a_time_for_each_key() -> None:
    turns: Turns[AttachmentKey] = Turns()
    inside: dict[AttachmentKey, int] = {ONE: 0, OTHER: 0}
    worst: list[int] = []

    def work(number: int) -> None:
        key = (ONE, OTHER)[number % 2]
        with turns.of(key):
            inside[key] += 1
            worst.append(inside[key])
            inside[key] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(2000)))
    assert (len(worst), max(worst)) == (2000, 1)
    assert turns._turns == {}


def test_other_keys_do_not_wait() -> None:
    turns: Turns[AttachmentKey] = Turns()
    is_done = threading.Event()

    def work() -> None:
        with turns.of(OTHER):
            is_done.set()

    with turns.of(ONE):
        threading.Thread(target=work).start()
        assert is_done.wait(20)


def test_turn_ends_with_an_error_too() -> None:
    turns: Turns[AttachmentKey] = Turns()
    for _ in range(2):
        with pytest.raises(ValueError, match="of the work"), turns.of(ONE):
            raise ValueError("of the work")
