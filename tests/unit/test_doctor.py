"""``doctor`` itself: which checks run, what is printed, what happens to a check that fails."""

import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.cli.doctor.catalog import CHECKS
from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.keyfile import boolean, drop_ins, settings
from overlay.cli.doctor.lazy import Lazy
from overlay.cli.doctor.report import document, print_reports
from overlay.cli.doctor.runner import Report, run
from overlay.cli.doctor.verdicts import (
    Check,
    Fine,
    Scope,
    Unknown,
    Verdict,
    error,
    named,
    warning,
)
from overlay.cli.main import main
from overlay.cli.out import Output
from tests.kernel.doctors import facts_of

ROOT = Path(__file__).resolve().parents[2]
FACTS = facts_of()


def check(name: str, *verdicts: Verdict, scope: Scope = Scope.HOST) -> Check:
    return Check(name, "nothing", lambda _facts: verdicts, scope)


def failing(problem: Exception, scope: Scope = Scope.HOST, name: str = "failing") -> Check:
    def fail(_facts: Facts) -> Iterator[Verdict]:
        yield Fine("so far")
        raise problem

    return Check(name, "nothing", fail, scope)


def reports(*checks: Check) -> list[Report]:
    return run(checks, FACTS, lambda _names: None)


@pytest.mark.parametrize("scope", list(Scope))
def test_check_that_cannot_tell_says_why(scope: Scope) -> None:
    told, unreadable = reports(
        failing(CannotTellError("no etcd"), scope),
        failing(OSError(13, "Permission denied", "/x"), scope, "other"),
    )
    assert told.verdicts == (Fine("so far"), Unknown("no etcd"))
    assert told.status == "unknown"
    assert unreadable.verdicts[1] == Unknown("/x: Permission denied")


@pytest.mark.parametrize("scope", list(Scope))
def test_fault_of_ours_is_not_hidden(scope: Scope) -> None:
    with pytest.raises(ZeroDivisionError):
        reports(failing(ZeroDivisionError(), scope))


def test_check_that_hangs_is_not_waited_for() -> None:
    end = threading.Event()

    def hang(_facts: Facts) -> Iterator[Verdict]:
        end.wait(20)
        yield Fine("at last")

    checks = (
        check("quick", Fine("done"), scope=Scope.PEERS),
        Check("hangs", "nothing", hang, Scope.STORE),
        check("here", Fine("done")),
    )
    told: list[list[str]] = []
    found = run(checks, FACTS, lambda names: told.append(list(names)), budget_s=0.2)
    end.set()
    assert [report.check.name for report in found] == ["quick", "hangs", "here"]
    assert [report.status for report in found] == ["fine", "unknown", "fine"]
    assert found[1].verdicts == (Unknown("no result within 0.2 s"),)
    assert told[-2:] == [["hangs"], []]


def test_report_for_people() -> None:
    found = reports(
        check("good", Fine("all well")),
        check("bad", error("it is\x1b[2J broken", "mend it"), warning("it may break", "look")),
        check("odd", Unknown("not root")),
    )
    out = io.StringIO()
    print_reports(found, Output("table", out), is_whole=False)
    assert out.getvalue() == (
        "bad   error    it is^[[2J broken\n"
        "      mend     mend it\n"
        "bad   warning  it may break\n"
        "      mend     look\n"
        "odd   unknown  not root\n"
        "3 checks: 1 fine, 1 could not be made, 2 findings\n"
    )
    out = io.StringIO()
    print_reports(found, Output("table", out), is_whole=True)
    assert out.getvalue().startswith("good  fine     all well\n")


def test_report_for_programs() -> None:
    (report,) = reports(check("bad", error("broken", "mend"), Fine("well"), Unknown("why")))
    assert document([report]) == {
        "checks": [
            {
                "check": "bad",
                "looks_at": "nothing",
                "status": "finding",
                "findings": [{"severity": "error", "reason": "broken", "remedy": "mend"}],
                "seen": ["well"],
                "unknown": ["why"],
            }
        ]
    }


@pytest.mark.parametrize("flag", ["--only=no-such", "--skip=disk,no-such"])
def test_check_that_is_not_there(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", flag], environment={}) == 2
    err = capsys.readouterr().err
    assert "no check no-such; there are kernel, forwarding" in err
    assert err.count("\n") == 1


def test_checks_that_are_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["doctor", "--all", f"--state-dir={tmp_path}", f"--root={tmp_path}"]
    assert main([*words, "--only=disk,cni-config,store", "--local"], environment={}) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[:-1]] == ["cni-config", "disk"]
    only = "--only=" + ",".join(found.name for found in CHECKS if found.name != "disk")
    assert main([*words, only, "--skip", only.removeprefix("--only=")], environment={}) == 0
    assert capsys.readouterr().out == "0 checks: 0 fine, 0 could not be made, 0 findings\n"


def test_fact_is_read_once_and_its_error_kept() -> None:
    asked: list[int] = []

    def read() -> int:
        asked.append(1)
        if len(asked) > 1:
            raise CannotTellError("asked again")
        return 7

    fact = Lazy(read)
    assert (fact(), fact(), len(asked)) == (7, 7, 1)

    def fail() -> int:
        asked.append(1)
        raise CannotTellError("never")

    broken = Lazy(fail)
    for _ in range(2):
        with pytest.raises(CannotTellError, match="never"):
            broken()
    assert len(asked) == 2


def test_names_are_few() -> None:
    assert named("abcdefg") == "a, b, c, d, e and 2 more"
    assert named([]) == ""


def test_drop_ins_hide_one_another_by_name(tmp_path: Path) -> None:
    for folder, name, value in (
        ("etc", "20.conf", 1),
        ("usr", "20.conf", 2),
        ("usr", "10.conf", 3),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(f"# x\n[S]\nkey = {value}\nodd line\n")
    files = drop_ins(tmp_path, ["etc", "usr", "none"], "*.conf")
    found = [(s.file.name, s.section, s.key, s.value) for s in settings(files)]
    assert found == [("10.conf", "S", "key", "3"), ("20.conf", "S", "key", "1")]
    assert [boolean(t, default=True) for t in ("no", "0", "Yes", "?")] == [False, False, True, True]


def test_every_check_is_documented() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| (\w+) \|", text, re.MULTILINE)
    assert rows == [(c.name, c.looks_at, c.scope.value) for c in CHECKS]


def test_names_of_checks_are_unique() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
