"""Events: noted in order, kept over restarts, whatever happened to the disk meanwhile."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.agent.cni_witness import witnessed
from overlay.agent.event_call import event_calls
from overlay.agent.event_journal import Journal
from overlay.agent.event_peers import changes
from overlay.agent.event_recorder import Recorder
from overlay.agent.events import Events
from overlay.agent.peer_leases import peer_leases
from overlay.agent.status import Held, Snapshot, Status
from overlay.model.errors import UsageError
from overlay.model.event import Event, EventFormatError, Filter, Kind, parse_event, parse_lines
from overlay.model.lease import Lease, LeaseView
from tests.kernel.netns import eventually
from tests.unit import odd
from tests.unit.worlds import V4, by_key, lease, site

ALL = Filter()
START = datetime(2026, 8, 1, 12, tzinfo=UTC)


class Clock:
    """A wall clock that goes on by a second each time that it is asked."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def event(number: int, kind: str = "store-lost", text: str = "away") -> Event:
    return Event(number, "2026-08-01T12:00:00.000Z", kind, text)


def shown(events: Sequence[Event]) -> str:
    return "\n".join(f"{e.number} {e.kind} {e.text} x{e.times}" for e in events)


def test_events_are_numbered_and_equal_neighbors_are_one() -> None:
    events = Events(Clock())
    events.note(Kind.RULESET_APPLIED, "in step")
    events.note(Kind.RULESET_APPLIED, "in step")
    events.note(Kind.STORE_LOST, "refused", code=14)
    events.note(Kind.RULESET_APPLIED, "in step")
    assert events.read(ALL) == ([], 0)
    events.flush()
    found, last = events.read(ALL)
    assert shown(found) == (
        "2 ruleset-applied in step x2\n3 store-lost refused x1\n4 ruleset-applied in step x1"
    )
    assert found[1].facts == {"code": 14}
    assert found[1].time == "2026-08-01T12:00:03.000Z"
    assert last == 4


def test_no_number_is_lost_or_doubled_however_many_threads_note() -> None:
    events = Events(room=10_000)

    def work(name: int) -> None:
        for i in range(200):
            events.note(Kind.POD_ATTACHED, f"{name}/{i}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    events.flush()
    for thread in threads:
        thread.join()
    events.flush()
    found, _ = events.read(ALL)
    assert [e.number for e in found] == list(range(1, 1601))
    assert len({e.text for e in found}) == 1600


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Filter(after=2), [3, 4]),
        (Filter(since="2026-08-01T12:00:04.000Z"), [4]),
        (Filter(kinds=frozenset({"store"})), [1, 3]),
        (Filter(kinds=frozenset({"store-back", "pod"})), [2, 3]),
        (Filter(after=9), []),
    ],
)
def test_filter(wanted: Filter, numbers: list[int]) -> None:
    events = Events(Clock())
    kinds = (Kind.STORE_LOST, Kind.POD_ATTACHED, Kind.STORE_BACK, Kind.LEASE_RENEWED)
    for kind in kinds:
        events.note(kind, "x")
    events.flush()
    assert [e.number for e in events.read(wanted)[0]] == numbers


def test_reader_waits_for_what_comes() -> None:
    events = Events()
    found: list[Event] = []
    reader = threading.Thread(target=lambda: found.extend(events.read(ALL, wait_s=20)[0]))
    reader.start()
    events.note(Kind.STORE_BACK, "there")
    events.flush()
    reader.join(20)
    assert [e.text for e in found] == ["there"]


def test_what_peers_wrote_cannot_fill_the_ring() -> None:
    events = Events()
    events.note(Kind.PEER_ADDED, "n" * 100_000, node="n" * 100_000, nodes=["n"] * 100_000)
    (found,) = events.flush()
    assert len(json.dumps(found.to_json())) < 2000


def test_ring_and_what_gathers_are_bounded() -> None:
    events = Events(room=3)
    for i in range(10):
        events.note(Kind.STORE_LOST, str(i))
    events.flush()
    events.note(Kind.STORE_LOST, "10")
    events.flush()
    assert [e.number for e in events.read(ALL)[0]] == [9, 10, 11]


@given(odd.anything)
@example({"number": True, "time": "", "kind": "", "text": ""})
@example({"number": 1 << 70, "time": "", "kind": "", "text": ""})
@example({"number": 1, "time": "", "kind": "", "text": "", "facts": []})
def test_anything_is_an_event_or_refused(document: Any) -> None:
    try:
        found = parse_event(document)
    except EventFormatError:
        return
    assert parse_event(found.to_json()) == found


@given(st.lists(st.binary(max_size=40)), st.integers(0, 3))
def test_lines_that_are_none_are_passed_over(garbage: list[bytes], cut: int) -> None:
    good = [json.dumps(event(n).to_json()).encode() for n in (1, 2, 3)]
    mixed = [*good[:cut], *garbage, *good[cut:]]
    assert [e.number for e in parse_lines(mixed)[0]] == [1, 2, 3]


def test_journal_keeps_and_rotates(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state", most_bytes=2000)
    assert journal.load() == ([], 0)
    for number in range(1, 101):
        journal.append([event(number)])
    found, bad = Journal(tmp_path / "state", most_bytes=2000).load()
    assert bad == 0
    numbers = [e.number for e in found]
    assert numbers == list(range(numbers[0], 101))
    assert 15 < len(numbers) < 40
    files = sorted((tmp_path / "state").iterdir())
    assert [f.name for f in files] == ["events.jsonl", "events.jsonl.1"]
    assert all(f.stat().st_mode & 0o777 == 0o600 and f.stat().st_size <= 2000 for f in files)


@pytest.mark.parametrize("tail", [b'{"number": 2, "ti', b"\xff\xfe\0", b"[[[[\n", b"null\n"])
def test_journal_goes_on_after_damage(tmp_path: Path, tail: bytes) -> None:
    journal = Journal(tmp_path)
    journal.append([event(1)])
    path = tmp_path / "events.jsonl"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + tail)
    journal.append([event(3)])
    found, bad = journal.load()
    assert ([e.number for e in found], bad) == ([1, 3], 1)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("form", ["link", "fifo", "folder"])
def test_journal_does_not_write_through_what_is_no_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "events.jsonl"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    if form == "link":
        path.symlink_to(victim)
    elif form == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"."):
        Journal(tmp_path).append([event(1)])
    assert victim.read_text() == "mine"
    status = Status()
    recorder = Recorder(status, Journal(tmp_path), batch_s=0.0)
    recorder.start()
    status.events.note(Kind.STORE_LOST, "away")
    recorder.close()
    assert [e.text for e in status.events.read(ALL)[0]] == ["away"], "in memory alone"


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    def run(*texts: str) -> list[Event]:
        status = Status(Events(Clock()))
        recorder = Recorder(status, Journal(tmp_path), batch_s=0.0)
        status.events.note(Kind.AGENT_STARTED, texts[0])  # before what was kept is known
        recorder.start()
        for text in texts[1:]:
            status.events.note(Kind.STORE_LOST, text)
        recorder.close()
        return status.events.read(ALL)[0]

    run("a", "b")
    first = (tmp_path / "events.jsonl").read_text()
    assert shown(run("c", "d")) == (
        "1 agent-started a x1\n2 store-lost b x1\n3 agent-started c x1\n4 store-lost d x1"
    )
    text = (tmp_path / "events.jsonl").read_text()
    assert (text.startswith(first), text.count("\n")) == (True, 4), "each is written once"


def test_what_matters_most_does_not_wait_for_the_batch(tmp_path: Path) -> None:
    status = Status()
    recorder = Recorder(status, Journal(tmp_path), batch_s=3600.0)
    recorder.start()
    try:
        status.events.note(Kind.RULESET_APPLIED, "first")
        status.events.note(Kind.LEASE_LOST, "gone")
        eventually(
            lambda: [event.text for event in Journal(tmp_path).load()[0]] == ["first", "gone"],
            timeout_s=20,
            what="both on the disk",
        )
    finally:
        recorder.close()


def test_each_event_is_written_once(tmp_path: Path) -> None:
    status = Status()
    recorder = Recorder(status, Journal(tmp_path))
    for text in ("a", "b", "c"):
        status.events.note(Kind.STORE_LOST, text)
        recorder.record()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a", "b", "c"]


FULL = """
import sys
from pathlib import Path
from overlay.agent.event_journal import Journal
from overlay.agent.event_recorder import Recorder
from overlay.agent.events import Events
from overlay.agent.status import Status
from overlay.model.event import Filter, Kind

place = Path("/mnt")
filler = (place / "filler").open("wb", buffering=0)
status = Status()
recorder = Recorder(status, Journal(place))
status.events.note(Kind.STORE_LOST, "before")
recorder.record()
try:
    while True:
        filler.write(b"x" * 100)
except OSError:
    pass
for i in range(200):
    status.events.note(Kind.STORE_LOST, f"full {i}")
    recorder.record()
assert len(status.events.read(Filter())[0]) == 201
filler.truncate(0)
status.events.note(Kind.STORE_BACK, "room again")
recorder.record()
found, bad = Journal(place).load()
assert [e.number for e in found] == list(range(1, 203)), found
print("kept", bad)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_full_disk_delays_what_is_written_and_loses_nothing() -> None:
    script = 'mount -t tmpfs -o size=64k tmpfs /mnt && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, FULL],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept")
    assert done.stderr.count("No space left") == 1, "said once, not with each event"


def told(before: Sequence[Lease] | None, after: Sequence[Lease]) -> str:
    old = None if before is None else by_key(*before)
    return "\n".join(f"{kind} {text}" for kind, text, _ in changes(old, by_key(*after)))


def v4(i: int, **options: Any) -> Lease:
    return lease(i, families=site(V4).config.families, **options)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        pytest.param(None, [], "", id="alone"),
        pytest.param(
            None, [v4(2), v4(3)], "peer-added 2 peers at the start: node2, node3", id="start"
        ),
        pytest.param(
            [v4(2)],
            [v4(2), v4(3)],
            "peer-added node3 with 10.244.3.0/24 at 192.0.2.3 came",
            id="one came",
        ),
        pytest.param(
            [v4(2)], [], "peer-removed node2 with 10.244.2.0/24 at 192.0.2.2 went", id="one went"
        ),
        pytest.param([v4(2)], [v4(2, revision=99)], "", id="a renewal is no change"),
        pytest.param(
            [v4(2)],
            [v4(2, public=9)],
            "peer-changed node2 with 10.244.2.0/24 at 192.0.2.9 changed: address was 192.0.2.2",
            id="another address",
        ),
        pytest.param(
            [],
            [v4(i) for i in range(1, 101)],
            "peer-added 100 peers came: node1, node2, node3, node4, node5 and 95 more",
            id="many at once",
        ),
    ],
)
def test_peers_that_come_change_and_go(
    before: Sequence[Lease] | None, after: Sequence[Lease], text: str
) -> None:
    assert told(before, after) == text


def test_held_peers_are_still_peers() -> None:
    gone = v4(2)
    snapshot = Snapshot(
        site=site(V4), view=LeaseView(7, by_key(v4(1), v4(3))), held=Held(by_key(gone), 5.0)
    )
    assert sorted(each.node for each in peer_leases(snapshot).values()) == ["node2", "node3"]


def test_recorder_tells_config_peers_and_held_from_the_snapshots(tmp_path: Path) -> None:
    status = Status()
    recorder = Recorder(status, Journal(tmp_path))
    here = site(V4)
    status.update(site=here, view=LeaseView(1, by_key(v4(1), v4(2))))
    recorder.record()
    status.update(view=LeaseView(2, by_key(v4(1))), held=Held(by_key(v4(2)), 60.0))
    recorder.record()
    other = site('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}')
    status.update(site=replace(here, config=other.config), held=None)
    recorder.record()
    recorder.record()
    assert shown(status.events.read(ALL)[0]) == (
        "1 peer-added 1 peer at the start: node2 x1\n"
        "2 peer-held 1 peer kept though gone from the store: node2 x1\n"
        '3 config-changed Backend is {"Type": "vxlan", "VNI": 7}, was {"Type": "vxlan"} x1\n'
        "4 peer-removed node2 with 10.244.2.0/24 at 192.0.2.2 went x1"
    )


@pytest.mark.parametrize(
    "given_", [{"after": "1"}, {"after": True}, {"since": 5}, {"kinds": "pod"}, {"wait_s": "x"}]
)
def test_call_refuses_odd_arguments_by_name(given_: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(given_))):
        event_calls(Events())["events"](given_)


def test_call_returns_events_and_the_last_number() -> None:
    events = Events(Clock())
    events.note(Kind.STORE_LOST, "away")
    events.note(Kind.POD_ATTACHED, "pod")
    events.flush()
    answer = event_calls(events)["events"]({"kinds": ["store"], "since": "2026"})
    assert [e["text"] for e in answer["events"]] == ["away"]
    assert answer["last"] == 2, "what was passed over is not asked for again"
    assert event_calls(events)["events"]({"after": 2}) == {"events": [], "last": 2}


def test_requests_are_timed_by_command_and_refusals_noted() -> None:
    status = Status()
    error = json.dumps({"code": 11, "msg": "no subnet", "details": "wait"}).encode()
    answers = {"ADD": (0, b"{}"), "DEL": (1, error)}
    moments = iter([1.0, 1.2, 5.0, 7.0])
    ask = witnessed(status, lambda v, text, netns: answers[v["CNI_COMMAND"]], lambda: next(moments))
    names = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    assert ask({"CNI_COMMAND": "ADD", **names}, b"", None) == (0, b"{}")
    assert ask({"CNI_COMMAND": "DEL", **names}, b"", None) == (1, error)
    assert status.timings.cni_done["ADD"].read()[1] == pytest.approx(0.2)
    assert status.timings.cni_failed["DEL"].read()[1] == pytest.approx(2.0)
    assert shown(status.events.flush()) == (
        "1 pod-refused DEL of eth0 of container c1: no subnet; wait x1"
    )
