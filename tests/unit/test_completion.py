"""Completion in the shells themselves: what each offers is what the parser takes."""

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from overlay.cli.completion import SHELLS
from overlay.cli.main import main, parser
from overlay.cli.tree import Command, command_tree
from overlay.model.event import Kind

ROOT: Final = command_tree(parser())
DEADLINE_S: Final = 20.0

BASH: Final = """\
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_overlayctl
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh completes in its line editor alone: matches are printed there instead of shown.
ZSH: Final = """\
PROMPT=
autoload -Uz compinit && compinit -D -u
source {script}
bindkey '^I' complete-word
mark() {{ print -r -- '<<>>' }}
compprefuncs=(mark)
comppostfuncs=(mark exit)
zstyle ':completion:*' insert-tab false
compadd() {{
    if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\\ * ]]; then
        builtin compadd "$@"
        return
    fi
    local -a hits
    builtin compadd -A hits "$@"
    (( $#hits )) && print -rl -- '' $hits
    builtin compadd "$@"
}}
print ready
"""

Offer = Callable[[Path, list[str]], list[str]]


def from_bash(script: Path, words: list[str]) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", BASH, "bash", str(script), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def from_fish(script: Path, words: list[str]) -> list[str]:
    line = " ".join(words).replace("'", "")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    assert done.stderr == ""
    return [each.split("\t")[0] for each in done.stdout.splitlines()]


def from_zsh(script: Path, words: list[str]) -> list[str]:
    rc = script.with_name(".zshrc")
    rc.write_text(ZSH.format(script=script))
    master, slave = pty.openpty()
    environment = {**os.environ, "ZDOTDIR": str(rc.parent), "TERM": "dumb"}
    shell = subprocess.Popen(
        ["zsh", "-d", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        told = read_until(master, b"ready\r\n")
        os.write(master, f"{' '.join(words)}\t".encode())
        told = read_until(master, b"")
    finally:
        shell.kill()
        shell.wait(DEADLINE_S)
        os.close(master)
    lines = told.decode().partition("<<>>")[2].split("<<>>")[0].splitlines()
    return [line.strip() for line in lines if line.strip()]


def read_until(master: int, end: bytes) -> bytes:
    """Return what the other side writes until ``end``; where that is empty, to its last."""
    data = b""
    deadline = time.monotonic() + DEADLINE_S
    while not (end and end in data):
        ready, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the shell says nothing more than {data!r}"
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            return data
        if not part:
            return data
        data += part
    return data


ASK: Final[dict[str, Offer]] = {"bash": from_bash, "zsh": from_zsh, "fish": from_fish}


@pytest.fixture(params=SHELLS)
def ask(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """Return what the shell offers for a line, which ends with the word to complete."""
    shell: str = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    assert main(["completion", shell], environment={}) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    return lambda line: ASK[shell](script, line.split(" "))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("overlayctl lea", ["leases"]),
        ("overlayctl leases re", ["release", "reserve"]),
        ("overlayctl -o json ipam ch", ["check"]),
        ("overlayctl --socket /x ipam --output yaml rel", ["release"]),
        ("overlayctl ipam -o yaml che", ["check"]),
        ("overlayctl leases --watch rel", ["release"]),
        ("overlayctl leases --no", ["--no-ttl"]),
        ("overlayctl -o y", ["yaml"]),
        ("overlayctl cni install --runtime c", ["containerd"]),
        ("overlayctl completion f", ["fish"]),
        ("overlayctl events --kind ruleset-", ["ruleset-applied"]),
        ("overlayctl lab up --egress is", ["island", "isolated"]),
    ],
)
def test_words_are_completed(
    ask: Callable[[str], list[str]], line: str, offered: list[str]
) -> None:
    assert sorted(set(ask(line))) == offered


def test_every_command_is_offered_at_its_place(ask: Callable[[str], list[str]]) -> None:
    groups = [command for command in ROOT.walk() if command.children]
    for group in groups:
        offered = set(ask(" ".join([*group.words, ""])))
        assert {child.name for child in group.children} <= offered, group.words


def test_files_are_completed_where_a_file_is_meant(
    ask: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").touch()
    for line in ("overlayctl network validate", "overlayctl cni install --shim"):
        (found,) = set(ask(f"{line} {tmp_path}/conf"))
        assert found.endswith("config.json")


def leaves() -> list[Command]:
    return [command for command in ROOT.walk() if command.runs]


@pytest.mark.parametrize("command", leaves(), ids=lambda command: " ".join(command.words))
def test_every_flag_is_offered_by_bash(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["completion", "bash"], environment={})
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    flags = {name for flag in command.flags if flag.is_shown for name in flag.names}
    assert set(from_bash(script, [*command.words, "-"])) == flags


def test_bash_completes_behind_an_equals_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Readline makes three words of ``--output=js``."""
    main(["completion", "bash"], environment={})
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert from_bash(script, ["overlayctl", "peers", "--output", "=", "js"]) == ["json"]
    assert from_bash(script, ["overlayctl", "peers", "--output", "="]) == ["table", "json", "yaml"]
    assert from_bash(script, ["overlayctl", "--output", "=", "json", "dif"]) == ["diff"]


def test_a_flag_that_takes_other_values_elsewhere_is_completed_by_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["completion", "bash"], environment={})
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert from_bash(script, ["overlayctl", "explain", "--family", ""]) == ["4", "6"]
    assert from_bash(script, ["overlayctl", "lab", "up", "--family", ""]) == ["4", "6", "dual"]


def test_scripts_are_clean_for_shellcheck(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    main(["completion", "bash"], environment={})
    done = subprocess.run(
        ["shellcheck", "-s", "bash", "-"],
        input=capsys.readouterr().out,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_kinds_are_offered_from_the_code() -> None:
    (kinds,) = {flag.choices for c in ROOT.walk() for flag in c.flags if "--kind" in flag.names}
    assert set(map(str, Kind)) < set(kinds)
