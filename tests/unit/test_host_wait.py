"""Waiting for a host: when to, what is said meanwhile, and to whom."""

import os
import socket

import pytest

from overlay.agent import probe
from overlay.agent.host_wait import HostWait, is_patient
from overlay.model.errors import UsageError

ADDRESS = f"\0overlayd-of-a-test-{os.getpid()}"  # tests of another checkout may run beside


@pytest.mark.parametrize(
    ("words", "variable", "expected"),
    [
        (["--wait-for-host"], "", True),
        (["-wait-for-host"], "", True),
        (["--wait-for-host=true", "--nonsense"], "", True),
        (["--wait-for-host", "--wait-for-host=false"], "", False),
        (["--wait-for-host=maybe"], "true", False),
        (["--wait-for-hosts"], "", False),
        (["wait-for-host"], "", False),
        ([], "1", True),
        ([], "", False),
    ],
)
def test_patience_is_known_before_the_flags_can_be_read(
    words: list[str], variable: str, expected: bool
) -> None:
    environment = {"OVERLAYD_WAIT_FOR_HOST": variable} if variable else {}
    assert is_patient(words, environment) is expected


class Agent:
    def __init__(self, *unready: str) -> None:
        self.unready = list(unready)

    def probe(self, question: str) -> str:
        return "; ".join(self.unready) if question == "ready" else ""


def test_probe_is_answered_from_the_first_moment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("probe", "host_wait"):  # this process may be in a container with an agent
        monkeypatch.setattr(f"overlay.agent.{module}.probe_address", lambda: ADDRESS)
    assert probe.main(["ready"]) == 1
    assert "no waiting overlayd answers in this container: Conn" in capsys.readouterr().out
    wait = HostWait()
    wait.listen()
    assert (probe.ask("live"), probe.ask("ready")) == ("", "starting")

    def fail() -> Agent:
        wait.stop.set()
        raise UsageError("--iface: none")

    assert wait.until(fail) is None
    assert capsys.readouterr().err == "overlayd: --iface: none; waiting until that is mended\n"
    assert (probe.ask("live"), probe.ask("ready")) == ("", "--iface: none")
    wait.agent = agent = Agent("waiting for the store", "no route")
    assert probe.main(["ready"]) == 1
    assert capsys.readouterr().out == "waiting for the store; no route\n"
    agent.unready.clear()
    assert (probe.main(["live"]), probe.main(["ready"])) == (0, 0)
    assert probe.ask("odd") == "ask live or ready"
    assert probe.main(["odd"]) == probe.main([]) == 2
    with socket.socket(socket.AF_UNIX) as silent:  # one that goes at once harms nobody
        silent.connect(ADDRESS)
    assert probe.ask("live") == ""
