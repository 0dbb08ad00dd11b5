"""The client of the agent's socket: one line of JSON there, one back (agent/control.py).

Nothing here waits for ever: a socket that accepts and says nothing is an
error after a few seconds.
"""

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from overlay.cli.shapes import Shape, misfit
from overlay.model.document import parse_json
from overlay.model.errors import OverlayError

PROTOCOL: Final = 1
_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 15.0  # a dump of some ten thousand entries, on a busy machine
_LONGEST: Final = 256 << 20  # bytes of one answer


class AgentUnreachableError(OverlayError):
    """Nobody answers on the socket, or not in the protocol's words."""

    exit_code: ClassVar[int] = 3


class AgentRefusedError(OverlayError):
    """The agent answered, and says no; ``code`` is the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"the agent refused: {message}")


def call(
    path: Path,
    name: str,
    args: Mapping[str, Any] | None = None,
    *,
    like: Shape = dict,
    timeout_s: float = _ANSWER_S,
) -> dict[str, Any]:
    """Return the result of the agent's call ``name``, which has the shape ``like``.

    Raises AgentUnreachableError naming the socket and what to look at, and
    AgentRefusedError.
    """
    document = {"overlay": PROTOCOL, "call": name, **({"args": dict(args)} if args else {})}
    request = json.dumps(document).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_CONNECT_S)
            client.connect(str(path))
            client.sendall(request)
            line = _read(client, time.monotonic() + timeout_s)
    except PermissionError as exc:
        msg = f"{path}: permission denied; the agent answers root alone"
        raise AgentUnreachableError(msg) from exc
    except TimeoutError as exc:
        msg = f"{path}: overlayd gives no answer within {timeout_s:g} s; look at its log"
        raise AgentUnreachableError(msg) from exc
    except OSError as exc:
        msg = (
            f"{path}: {exc.strerror or exc}; is overlayd running on this node "
            "(systemctl status overlayd), and is this its --cni-socket?"
        )
        raise AgentUnreachableError(msg) from exc
    result = _result(path, line)
    place = misfit(result, like)
    if place is not None:
        msg = (
            f"{path}: the answer to {name!r} has no {place or 'content'} that can be shown; "
            "do both programs have one version?"
        )
        raise AgentUnreachableError(msg)
    return result


def _read(client: socket.socket, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size <= _LONGEST:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        client.settimeout(left_s)
        part = client.recv(1 << 16)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts)


def _result(path: Path, line: bytes) -> dict[str, Any]:
    try:
        answer = parse_json(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("overlay") != PROTOCOL:
        msg = f"{path}: the answer is not overlayd's; do both programs have one version?"
        raise AgentUnreachableError(msg)
    result, error = answer.get("result"), answer.get("error")
    if answer.get("ok") is True and isinstance(result, dict):
        return result
    if not isinstance(error, dict):
        error = {}
    raise AgentRefusedError(str(error.get("code")), str(error.get("message", "no reason given")))
