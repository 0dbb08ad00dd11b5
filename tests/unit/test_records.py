"""An attachment's record: written once, completed in place, and whole at any moment."""

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from overlay.agent.records import complete_record, read_last, write_last, write_record
from overlay.model.attachment import Attachment, AttachmentKey, parse_attachment

PLAIN = Attachment(
    AttachmentKey("fabric", "one", "eth0"), "/run/netns/pod", (ip_address("10.1.0.2"),), "opod1"
)


def read(path: Path) -> Attachment:
    return parse_attachment(json.loads(path.read_bytes()))


def test_record_is_completed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_record(path, PLAIN)
    assert read(path) == PLAIN
    inode, size = path.stat().st_ino, path.stat().st_size
    done = complete_record(path, PLAIN)
    assert done == replace(PLAIN, is_complete=True) == read(path)
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size), "no room is needed for it"
    assert complete_record(path, done) == done == read(path)
    assert [each.name for each in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.parametrize("length", range(4090, 4104))
def test_record_that_ends_near_a_page_is_completed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "one.json"
    short = len(json.dumps(PLAIN.to_json()))
    long = replace(PLAIN, sandbox=PLAIN.sandbox + "x" * (length - short))
    write_record(path, long)
    assert path.stat().st_size == length
    inode = path.stat().st_ino
    assert complete_record(path, long).is_complete
    assert read(path) == replace(long, is_complete=True)
    crosses = (length - 6) // 4096 != (length - 1) // 4096
    assert (path.stat().st_ino != inode) == crosses, "two pages are not written at once"


@pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"complete": false', b"\0" * 300])
def test_record_that_somebody_changed_is_written_whole(
    tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "one.json"
    if damage is not None:
        path.write_bytes(damage)
    done = complete_record(path, PLAIN)
    assert read(path) == done


def test_last_addresses_are_kept_for_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "last"
    assert read_last(path) == ()
    longest = "fd00:1111:2222:3333:4444:5555:6666:7777"
    for words in (["10.1.0.254", longest], ["10.1.0.2", "fd00::2"], ["10.1.0.3"]):
        wanted = tuple(map(ip_address, words))
        write_last(path, wanted)
        assert read_last(path) == wanted
        assert path.stat().st_size == 64, "nothing of a longer one is left"
