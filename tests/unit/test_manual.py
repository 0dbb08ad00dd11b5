"""Man pages say what ``--help`` says, in roff that man and mandoc read without a complaint."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from manual import roff
from manual.pages import pages
from overlay.agent.flag_parser import flag_parser
from overlay.cli.main import parser
from overlay.cli.tree import command_tree
from overlay_cni import plugin

PAGES = pages("2026-08-01")
ROOT = Path(__file__).resolve().parents[2]


def as_text(page: str) -> str:
    """Return a page's text without the macros, as a reader meets it."""
    lines = [re.sub(r"^\.(SH|SS|B|TP|PP|nf|fi) ?", "", line) for line in page.splitlines()]
    return "\n".join(lines).replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing(name: str, tmp_path: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("needs mandoc")
    path = tmp_path / name
    path.write_text(PAGES[name])
    done = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", PAGES)
def test_groff_warns_of_nothing(name: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"],
        input=PAGES[name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "SEE ALSO" in re.sub(".\b", "", done.stdout), "bold is struck over"


def test_any_text_stands_as_it_was_written() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("needs mandoc")
    text = "'a\\fBb\\n -- .c \\"
    page = roff.title("x", 1, "2026-08-01", "y") + roff.section("text") + roff.paragraph(text)
    done = subprocess.run(
        ["mandoc", "-Tascii"], input=page, capture_output=True, text=True, check=True, timeout=60
    )
    assert f" {text}\n" in done.stdout


def test_every_command_and_flag_is_told() -> None:
    text = as_text(PAGES["overlayctl.1"])
    for command in command_tree(parser()).walk():
        if command.runs and len(command.words) > 1:
            assert re.search(rf'^"{" ".join(command.words[1:])}\b', text, re.MULTILINE), command
        for flag in command.flags:
            assert not flag.is_shown or all(name in text for name in flag.names), flag


def test_every_flag_of_the_agent_is_told_with_its_words() -> None:
    text = as_text(PAGES["overlayd.8"])
    for flag in command_tree(flag_parser({})).flags:
        assert f"\n{flag.names[-1]}" in text or f", {flag.names[-1]}" in text
        assert flag.text in text


def test_every_command_and_version_of_the_plugin_is_told() -> None:
    text = as_text(PAGES["overlay.8"])
    for word in (*plugin.NEEDS, *plugin.PASSED):
        assert word.decode() in text
    assert ", ".join(plugin.VERSIONS) in text


def test_pages_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "manual", "man", str(tmp_path / "man")]
    environment = {"SOURCE_DATE_EPOCH": "1785585600", "PYTHONPATH": f"{ROOT}:{ROOT}/cni"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=60)
    written = {path.name: path.read_text() for path in (tmp_path / "man").iterdir()}
    assert written == PAGES
