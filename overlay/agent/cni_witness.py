"""What there is to tell of CNI requests: how long each took, and what came of it, in words.

``witnessed`` stands between the socket and whoever answers.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from overlay.agent.events import Told
from overlay.agent.status import Status
from overlay.agent.timings import CNI_COMMANDS
from overlay.kernel.pod_namespace import PodNamespace
from overlay.model.attachment import Attachment
from overlay.model.event import Kind

Answer = tuple[int, bytes]
Ask = Callable[[Mapping[str, str], bytes, PodNamespace | None], Answer]


def witnessed(status: Status, ask: Ask, clock: Callable[[], float] = time.monotonic) -> Ask:
    """Return ``ask``, timed. What a pod waits for is not made longer by a file or a parser."""

    def answer(variables: Mapping[str, str], text: bytes, netns: PodNamespace | None) -> Answer:
        begun_at = clock()
        code, output = ask(variables, text, netns)
        command = variables.get("CNI_COMMAND", "")
        if command in CNI_COMMANDS:
            timings = status.timings
            outcomes = timings.cni_failed if code else timings.cni_done
            outcomes[command].observe(clock() - begun_at)
        if code and command in {"ADD", "DEL"}:
            status.events.note_later(Kind.POD_REFUSED, lambda: _refused(variables, output))
        return code, output

    return answer


def attached(attachment: Attachment) -> Told:
    """Return a pod's interface that came, in words."""
    return f"{attachment.shown} is attached", _facts(attachment)


def detached(attachment: Attachment, why: str) -> Told:
    """Return a pod's interface that went, in words."""
    return f"{attachment.shown} is detached: {why}", _facts(attachment)


def _facts(attachment: Attachment) -> dict[str, Any]:
    document = attachment.to_json()
    return {name: document[name] for name in ("container", "interface", "addresses", "link")}


def _refused(variables: Mapping[str, str], output: bytes) -> Told:
    """Return a refused request in words. ``output`` is an error in CNI's form, of our own."""
    document: dict[str, Any] = json.loads(output)
    command = variables.get("CNI_COMMAND", "")
    container, interface = (variables.get(f"CNI_{n}", "") for n in ("CONTAINERID", "IFNAME"))
    details = f"; {document['details']}" if document.get("details") else ""
    whose = f"{interface or '?'} of container {container or '?'}"
    facts = {"container": container, "interface": interface, "code": document["code"]}
    return f"{command} of {whose}: {document['msg']}{details}", facts
