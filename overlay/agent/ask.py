"""Answering other nodes over HTTP, where ``--healthz-ip`` lets them come here at all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from overlay.agent.nonces import Nonces
from overlay.mesh.ask import ASKER_HEADER, NONCE_HEADER, PATH, SEAL_HEADER, Exchange, answer_seal
from overlay.mesh.seal import NONCE_BYTES, SEAL_BYTES
from overlay.model.document import parse_json
from overlay.model.errors import OverlayError
from overlay.model.fabric_key import FabricKeys

MOST_BYTES: Final = 65536  # of a question
_STALE: Final = "the nonce is not of this node, was used before, or is too old"

Call = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back; ``seal`` is empty where the asker has shown no key."""

    status: int
    body: bytes
    seal: bytes = b""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers beside type and length."""
        return {SEAL_HEADER: self.seal.hex()} if self.seal else {}


class Asks:
    """``calls`` are all that others may ask; any thread may answer."""

    def __init__(
        self,
        node_id: str,
        keys: Callable[[], FabricKeys],
        calls: Mapping[str, Call],
        clock: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._keys = keys
        self._calls = calls
        self._nonces = Nonces(clock)

    def challenge(self) -> Answer:
        """Return a nonce that is good for one question within 30 s."""
        nonce = self._nonces.give().hex()
        return Answer(200, json.dumps({"overlay": 1, "nonce": nonce}).encode())

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer to a question; without a good seal, what it lacks."""
        call = path.removeprefix(f"{PATH}/")
        nonce, asker, given = (
            _bytes(headers.get(name, ""), size)
            for name, size in (
                (NONCE_HEADER, NONCE_BYTES),
                (ASKER_HEADER, NONCE_BYTES),
                (SEAL_HEADER, SEAL_BYTES),
            )
        )
        if not (nonce and asker and given):
            return _refusal(400, f"get a nonce with GET {PATH}, then seal the question")
        if not self._nonces.is_good(nonce):
            return _refusal(403, _STALE)
        exchange = Exchange(self._node_id, nonce, asker, call)
        key = exchange.question_key(self._keys().counting, given, body)
        if key is None:
            return _refusal(403, "not sealed with the fabric's key, or meant for another node")
        if not self._nonces.spend(nonce):
            return _refusal(403, _STALE)
        status, document = self._call(call, body)
        text = json.dumps(document).encode()
        return Answer(status, text, answer_seal(exchange.answer_key(key), status, text))

    def _call(self, name: str, body: bytes) -> tuple[int, Any]:
        call = self._calls.get(name)
        if call is None:
            return 404, {"error": f"there are {', '.join(sorted(self._calls))}"}
        try:
            arguments = parse_json(body or b"{}")
        except ValueError as exc:
            return 400, {"error": f"the question is not JSON: {exc}"}
        try:
            return 200, {"result": call(arguments if isinstance(arguments, dict) else {})}
        except OverlayError as exc:
            return 409, {"error": str(exc)}


def _bytes(text: str, size: int) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return b""
    return data if len(data) == size else b""


def _refusal(status: int, text: str) -> Answer:
    return Answer(status, json.dumps({"error": text}).encode())
