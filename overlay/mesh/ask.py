"""Questions between nodes over HTTP: what is sealed, and in which words.

``GET /ask`` gives a nonce that is good once. ``POST /ask/CALL`` with it, a nonce
of the asker's own and the seal under the fabric's key is answered with a seal
over both nonces: each side knows that the other may read the store, and that
nothing was recorded earlier. The answer's seal is under a key of this exchange
alone, so that whoever holds the fabric's key can let another ask one question.
Nothing is encrypted; nothing secret is answered.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from overlay.mesh.seal import fitting_key, seal

PATH: Final = "/ask"
NONCE_HEADER: Final = "Overlay-Nonce"
ASKER_HEADER: Final = "Overlay-Asker-Nonce"
SEAL_HEADER: Final = "Overlay-Seal"
_QUESTION: Final = b"overlay question 1"
_ANSWER: Final = b"overlay answer 2"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to one node. ``nonce`` is the node's, ``asker`` the asker's, ``call`` its name.

    The node's id is sealed too, so that a question is good at that node alone.
    """

    node_id: str
    nonce: bytes
    asker: bytes
    call: str

    def question_seal(self, key: bytes, body: bytes) -> bytes:
        """Return what the asker shows."""
        return seal(key, _QUESTION, *self._parts(), body)

    def question_key(self, keys: Iterable[bytes], given: bytes, body: bytes) -> bytes | None:
        """Return the key under which ``given`` seals the question, or None."""
        return fitting_key(keys, given, _QUESTION, *self._parts(), body)

    def answer_key(self, key: bytes) -> bytes:
        """Return the key of this exchange's answer; nothing follows from it for another."""
        return seal(key, _ANSWER, *self._parts())

    def _parts(self) -> tuple[bytes, ...]:
        node_id, call = (text.encode(errors="replace") for text in (self.node_id, self.call))
        return (node_id, self.nonce, self.asker, call)


def answer_seal(answer_key: bytes, status: int, body: bytes) -> bytes:
    """Return what the node shows with its answer."""
    return seal(answer_key, str(status).encode(), body)


def is_answer(answer_key: bytes, given: bytes, status: int, body: bytes) -> bool:
    """Return whether ``given`` seals the answer."""
    return hmac.compare_digest(answer_seal(answer_key, status, body), given)
