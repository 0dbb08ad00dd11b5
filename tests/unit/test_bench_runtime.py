"""The program that executes plugins for ``bench cni``: what it gives them, and what it tells."""

import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from bench.chains import Chain
from bench.runtime import Calls, PluginError, Runtime, build

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="needs a C compiler (Debian: gcc libc6-dev)"
)

# Two commands for one pod at the same time would meet its lock.
PLUGIN = """#!/bin/sh
set -e
mkdir "$CNI_NETNS/lock"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(cat)" >> "$CNI_NETNS/calls"
rmdir "$CNI_NETNS/lock"
echo '{}'
"""


@pytest.fixture
def pods(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"pod{number}" for number in range(6)]
    for pod in found:
        pod.mkdir()
    return found


def runtime(place: Path, pods: list[Path], text: str = PLUGIN) -> Runtime:
    script = place / "plugin"
    script.write_text(text)
    script.chmod(0o755)
    return Runtime(build(place), Chain("test", (str(script),), b"its input"), pods, None)


def calls_of(pods: list[Path]) -> dict[str, list[str]]:
    """Return what each container was asked, one after the other, and check the rest."""
    found = defaultdict(list)
    for pod in pods:
        for line in (pod / "calls").read_text().splitlines():
            command, container, interface, text = line.split(maxsplit=3)
            assert (interface, text) == ("eth0", "its input")
            found[container].append(command)
    return found


def test_each_round_adds_and_deletes_one_pod_by_itself(tmp_path: Path, pods: list[Path]) -> None:
    made = runtime(tmp_path, pods).in_turns(50, 6)
    found = calls_of(pods)
    assert sorted(found) == [f"bench{number:059d}" for number in range(50)]
    assert all(commands == ["ADD", "DEL"] for commands in found.values())
    assert {command: len(calls.each_s) for command, calls in made.items()} == {"ADD": 50, "DEL": 50}
    add = made["ADD"]
    assert 0 < min(add.each_s) <= max(add.each_s) <= add.wall_s
    assert add.cpu_s > 0


def test_every_pod_is_added_once_and_deleted_under_the_same_name(
    tmp_path: Path, pods: list[Path]
) -> None:
    runtime(tmp_path, pods).all_at_once(3)
    for number, pod in enumerate(pods):
        lines = [line.split()[:2] for line in (pod / "calls").read_text().splitlines()]
        assert lines == [["ADD", f"bench{number:059d}"], ["DEL", f"bench{number:059d}"]]


def test_refusal_is_told_in_the_plugins_words(tmp_path: Path, pods: list[Path]) -> None:
    refusing = runtime(tmp_path, pods, "#!/bin/sh\necho no room; exit 1\n")
    with pytest.raises(PluginError, match=r"test: ADD: status 256: no room"):
        refusing.in_turns(1, 1)


def test_program_that_reads_no_input_is_no_failure(tmp_path: Path, pods: list[Path]) -> None:
    assert len(runtime(tmp_path, pods, "#!/bin/sh\n").in_turns(3, 2)["DEL"].each_s) == 3


def test_joined_calls_are_as_long_as_all_and_cost_what_one_costs() -> None:
    one, other = Calls((1.0,), 2.0, 4.0), Calls((2.0, 3.0, 4.0), 5.0, 8.0)
    assert Calls.joined([one, other]) == Calls((1.0, 2.0, 3.0, 4.0), 7.0, 7.0)
