"""``overlayd probe live|ready``: what a kubelet executes in the agent's container again and again.

It asks the agent of its own container and no other: where two agents are on a
host, a port or a path would lead to the first of them. The socket is an
abstract one, named by the PID namespace that both are in. It must stay cheap:
what it imports is what each probe costs.
"""

import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

QUESTIONS: Final = ("live", "ready")
_TIMEOUT_S: Final = 3.0  # less than a kubelet waits, so that the reason is told
_UCRED: Final = struct.Struct("=iII")


def probe_address() -> str:
    """Return the address of the agent's probe socket in this container (unix(7), abstract)."""
    return f"\0overlayd-probe-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - cheap


def ask(question: str) -> str:
    """Return why the answer is no, empty where it is yes. Raises OSError where nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(_TIMEOUT_S)
        agent.connect(probe_address())
        peer = agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(peer)[1] != os.geteuid():
            return "somebody else answers for the agent"
        agent.sendall(question.encode() + b"\n")
        agent.shutdown(socket.SHUT_WR)
        answer = b""
        while part := agent.recv(65536):
            answer += part
    text = answer.decode(errors="replace").strip()
    return "" if text == "yes" else text or "the agent closed the connection without an answer"


def main(words: Sequence[str]) -> int:
    """Answer by the exit status: 0 for yes, 1 with the reason on standard output, 2 for usage."""
    if len(words) != 1 or words[0] not in QUESTIONS:
        sys.stderr.write("overlayd: write `overlayd probe live` or `overlayd probe ready`\n")
        return 2
    try:
        reason = ask(words[0])
    except OSError as exc:
        reason = f"no waiting overlayd answers in this container: {exc.strerror or exc}"
    if reason:
        sys.stdout.write(f"{reason}\n")
    return 1 if reason else 0
