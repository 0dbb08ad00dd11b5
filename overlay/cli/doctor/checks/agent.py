"""What this node's agent says of itself: is it there, what troubles it."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.control import AgentUnreachableError
from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error, warning


def _run(facts: Facts) -> Iterator[Verdict]:
    try:
        status = facts.agent()
    except AgentUnreachableError as exc:
        if facts.fabric().is_there:
            reason = f"the agent does not answer, so nothing is repaired or learned: {exc}"
            yield error(reason, "systemctl restart overlayd")
        else:
            yield Unknown(f"no agent answers, and none has run here: {exc}")
        return
    for reason in status.get("reasons") or []:
        yield error(f"the agent is not ready: {reason}", "journalctl -u overlayd -n 50")
    for problem in status.get("problems") or []:
        yield warning(f"{problem['about']}: {problem['text']}", "overlayctl status")
    yield Fine(f"{status.get('phase')}, {status.get('peers')} peers, {status.get('subnet')}")


CHECK: Final = Check("agent", "the agent's own state and warnings", _run)
