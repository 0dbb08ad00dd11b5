"""Waiting for a host that is not ready, where an end would only be a crash loop.

With ``--wait-for-host``, as in the DaemonSet, what a person would be told at
once by an exit is a reason that the agent is not ready: a flag or a variable
that cannot be used, a second agent, a busy port. It answers the probes of its
container from its first moment (``overlay.agent.probe``).
"""

import logging
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from overlay.agent.listen import Crew
from overlay.agent.probe import QUESTIONS, probe_address
from overlay.model.errors import OverlayError

log = logging.getLogger(__name__)

T = TypeVar("T")

FLAG: Final = "--wait-for-host"
_VARIABLE: Final = "OVERLAYD_WAIT_FOR_HOST"
_RETRY_S: Final = 10.0
_BACKLOG: Final = 16
_LONGEST: Final = 64  # bytes of a question
_TIMEOUT_S: Final = 5.0
_UCRED: Final = struct.Struct("=iII")


class Answering(Protocol):
    """Who is alive and ready, or says why not."""

    def probe(self, question: str) -> str:
        """Return why it is not ``live`` or ``ready``; empty where it is."""


def is_patient(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether to wait, also where the flags cannot be read for an error in them."""
    given = [word.lstrip("-").partition("=") for word in words if word.startswith("-")]
    values = [value or "true" for name, _, value in given if name == FLAG.lstrip("-")]
    return (values or [environment.get(_VARIABLE, "")])[-1].lower() in {"true", "1"}


class HostWait:
    """What is waited for before an agent is there; afterwards that one answers."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.agent: Answering | None = None
        self._reason = "starting"

    def listen(self) -> None:
        """Answer probes until the process ends."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(probe_address())
        except OSError as exc:  # not in a container of its own: nobody probes there
            listener.close()
            log.warning("`overlayd probe` is not answered: %s", exc.strerror)
            return
        listener.listen(_BACKLOG)
        Crew(listener, self._serve, "probes")

    def until(self, build: Callable[[], T]) -> T | None:
        """Return what ``build`` makes once it can; None when it was stopped before."""
        while not self.stop.is_set():
            try:
                return build()
            except OverlayError as exc:
                text = str(exc)
                if text != self._reason:
                    sys.stderr.write(f"overlayd: {text}; waiting until that is mended\n")
                self._reason = text
            self.stop.wait(_RETRY_S)
        return None

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                client.settimeout(_TIMEOUT_S)
                peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                if _UCRED.unpack(peer)[1] != os.geteuid():
                    return
                question = client.recv(_LONGEST).decode(errors="replace").strip()
                client.sendall((self._answer(question) or "yes").encode() + b"\n")
            except OSError as exc:
                log.debug("a probe went away: %s", exc)

    def _answer(self, question: str) -> str:
        if question not in QUESTIONS:
            return f"ask {' or '.join(QUESTIONS)}"
        if self.agent is not None:
            return self.agent.probe(question)
        return "" if question == "live" else self._reason
