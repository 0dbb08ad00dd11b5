"""Questions between nodes: sealed both ways, each good once and at one node."""

import json
from typing import Any

import pytest

from overlay.agent.ask import Answer, Asks
from overlay.mesh.ask import ASKER_HEADER, NONCE_HEADER, SEAL_HEADER, Exchange, is_answer
from overlay.model.errors import UsageError
from overlay.model.fabric_key import FabricKeys

KEY, BEFORE, OTHER = b"k" * 32, b"p" * 32, b"o" * 32
ASKER = b"a" * 16


class World:
    """A node with the calls ``echo`` and ``fail``."""

    def __init__(self) -> None:
        self.now = 0.0
        calls = {"echo": lambda given: {"given": given}, "fail": self.fail}
        self.asks = Asks("n1", lambda: FabricKeys(KEY, BEFORE), calls, lambda: self.now)

    def fail(self, _given: Any) -> Any:
        msg = "no such thing"
        raise UsageError(msg)

    def exchange(self, call: str = "echo", node: str = "n1") -> Exchange:
        nonce = json.loads(self.asks.challenge().body)["nonce"]
        return Exchange(node, bytes.fromhex(nonce), ASKER, call)

    def ask(self, exchange: Exchange, body: bytes = b"{}", key: bytes = KEY) -> Answer:
        headers = {
            NONCE_HEADER: exchange.nonce.hex(),
            ASKER_HEADER: exchange.asker.hex(),
            SEAL_HEADER: exchange.question_seal(key, body).hex(),
        }
        return self.asks.answer(f"/ask/{exchange.call}", headers, body)


@pytest.mark.parametrize("key", [KEY, BEFORE])
def test_question_under_either_key_gets_an_answer_under_the_same(key: bytes) -> None:
    world = World()
    exchange = world.exchange()
    answer = world.ask(exchange, b'{"x": 1}', key)
    assert json.loads(answer.body) == {"result": {"given": {"x": 1}}}
    assert is_answer(exchange.answer_key(key), answer.seal, 200, answer.body)
    assert not is_answer(exchange.answer_key(OTHER), answer.seal, 200, answer.body)
    assert not is_answer(exchange.answer_key(key), answer.seal, 404, answer.body)
    assert not is_answer(exchange.answer_key(key), answer.seal, 200, answer.body + b" ")
    assert not is_answer(world.exchange().answer_key(key), answer.seal, 200, answer.body)


def test_question_is_answered_once() -> None:
    world = World()
    exchange = world.exchange()
    assert world.ask(exchange).status == 200
    again = world.ask(exchange)
    assert (again.status, again.seal) == (403, b"")


def test_nonce_is_good_for_half_a_minute() -> None:
    world = World()
    exchange = world.exchange()
    world.now = 30.0
    assert world.ask(exchange).status == 403


def test_question_under_another_key_or_for_another_node_is_refused() -> None:
    world = World()
    assert world.ask(world.exchange(), key=OTHER).status == 403
    assert world.ask(world.exchange(node="n2")).status == 403
    forged = Exchange("n1", b"f" * 16, ASKER, "echo")
    assert world.ask(forged).status == 403


def test_changed_question_is_refused() -> None:
    world = World()
    exchange = world.exchange()
    headers = {
        NONCE_HEADER: exchange.nonce.hex(),
        ASKER_HEADER: exchange.asker.hex(),
        SEAL_HEADER: exchange.question_seal(KEY, b"{}").hex(),
    }
    assert world.asks.answer("/ask/fail", headers, b"{}").status == 403


@pytest.mark.parametrize("value", ["", "zz", "00", "\u00e4"])
def test_odd_headers_are_refused_in_words(value: str) -> None:
    headers = dict.fromkeys((NONCE_HEADER, ASKER_HEADER, SEAL_HEADER), value)
    answer = World().asks.answer("/ask/echo", headers, b"{}")
    assert answer.status == 400
    assert "GET /ask" in answer.body.decode()


@pytest.mark.parametrize(
    ("call", "body", "status", "words"),
    [
        ("nope", b"{}", 404, "there are echo, fail"),
        ("echo", b"{", 400, "not JSON"),
        ("fail", b"{}", 409, "no such thing"),
    ],
)
def test_what_cannot_be_answered_is_sealed_too(
    call: str, body: bytes, status: int, words: str
) -> None:
    world = World()
    exchange = world.exchange(call)
    answer = world.ask(exchange, body)
    assert answer.status == status
    assert words in answer.body.decode()
    assert is_answer(exchange.answer_key(KEY), answer.seal, status, answer.body)


def test_those_without_the_key_push_nobody_out() -> None:
    world = World()
    first = world.exchange()
    for _ in range(5000):
        forged = world.exchange()
        assert world.ask(forged, key=OTHER).status == 403
    assert world.ask(first).status == 200


def test_nonce_that_was_not_given_here_is_refused() -> None:
    exchange = World().exchange()
    assert World().ask(exchange).status == 403, "of an agent that has another secret"
    world = World()
    given = world.exchange().nonce
    for place in range(len(given)):
        changed = bytes(b ^ (index == place) for index, b in enumerate(given))
        assert world.ask(Exchange("n1", changed, ASKER, "echo")).status == 403


def test_what_holders_of_the_key_spend_is_bounded() -> None:
    world = World()
    statuses = [world.ask(world.exchange()).status for _ in range(4097)]
    assert (statuses.count(200), statuses[-1]) == (4096, 403)
    world.now = 30.0
    assert world.ask(world.exchange()).status == 200
