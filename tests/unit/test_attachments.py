"""Attachments: kept over restarts, not over boots; damage skipped; no address given twice."""

import json
import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from overlay.agent.attachments import (
    AttachmentExistsError,
    Attachments,
    AttachmentUnreadError,
)
from overlay.ipam.pool import AddressTakenError, Demand, PoolExhaustedError
from overlay.model.address import IPAddress, MacAddress
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.subnet import parse_subnet

SUBNET = parse_subnet("10.1.0.0/26,fd00::/64")  # 61 of IPv4


def key(name: str) -> AttachmentKey:
    return AttachmentKey("fabric", name, "eth0")


def add(
    here: Attachments, name: str, subnet: str = "", wanted: tuple[IPAddress, ...] = ()
) -> Attachment:
    def make(addresses: tuple[IPAddress, ...]) -> Attachment:
        return Attachment(
            key=key(name),
            sandbox="/run/netns/pod",
            addresses=addresses,
            link="opod1",
            mac=MacAddress("02:00:00:00:00:01"),
            mtu=1430,
            arguments={"K8S_POD_NAME": name},
        )

    own = parse_subnet(subnet) if subnet else SUBNET
    return here.add(own, Demand(wanted), key(name), make)


def held(here: Attachments) -> list[str]:
    return [f"{a.key.container} {' '.join(map(str, a.addresses))}" for a in here.list()]


def test_restart_forgets_nothing(tmp_path: Path) -> None:
    first = Attachments(tmp_path / "a")
    first.complete(add(first, "one"))
    add(first, "two")
    first.complete(add(first, "three"))
    first.release(key("one"))
    second = Attachments(tmp_path / "a")
    assert {a.key: a for a in second.list()} == {a.key: a for a in first.list()}
    assert {a.key.container: a.is_complete for a in second.list()} == {"two": False, "three": True}
    assert second.get(key("one")) is None
    assert sorted(held(second)) == ["three 10.1.0.4 fd00::4", "two 10.1.0.3 fd00::3"]
    assert str(add(second, "four").addresses[0]) == "10.1.0.5", "goes on behind the last"


def test_second_one_under_a_key_is_refused_and_the_first_kept(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    first = add(here, "one")
    with pytest.raises(AttachmentExistsError) as caught:
        add(here, "one")
    assert caught.value.attachment == first
    assert held(Attachments(tmp_path / "a")) == held(here)


def test_error_keeps_nothing(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    first = add(here, "one")
    with pytest.raises(AddressTakenError):
        add(here, "two", wanted=first.addresses)
    with pytest.raises(PoolExhaustedError):
        add(here, "three", "10.9.0.0/32")
    (tmp_path / "a").rename(tmp_path / "away")
    (tmp_path / "a").write_text("a file where the folder was")
    with pytest.raises(OSError, match=r"exists|directory"):
        add(here, "four")
    assert held(here) == ["one 10.1.0.2 fd00::2"]


def test_release_is_repeatable(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    first = add(here, "one")
    assert here.release(key("one")) == first
    assert here.release(key("one")) is None
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["boot_id", "last"]


def test_address_that_was_given_back_rests_over_a_restart(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    for name in ("one", "two"):
        add(here, name)
        here.release(key(name))
    here = Attachments(tmp_path / "a")
    static = add(here, "static", wanted=(ip_address("10.1.0.40"),))
    assert [str(a) for a in static.addresses] == ["10.1.0.40", "fd00::4"]
    here.release(key("static"))
    again = add(Attachments(tmp_path / "a"), "three")
    assert [str(a) for a in again.addresses] == ["10.1.0.4", "fd00::5"], "each family for itself"


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"10.1.0.9 rubbish", b"\0" * 64])
def test_lost_place_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    add(Attachments(tmp_path / "a"), "one")
    (tmp_path / "a" / "last").write_bytes(damage)
    assert str(add(Attachments(tmp_path / "a"), "two").addresses[0]) == "10.1.0.3"


def test_attachment_of_an_older_version_is_routed(tmp_path: Path) -> None:
    add(Attachments(tmp_path / "a"), "one")
    (file,) = (tmp_path / "a").glob("*.json")
    document = json.loads(file.read_text())
    assert document.pop("mode") == "ptp"
    file.write_text(json.dumps(document))
    assert [a.mode for a in Attachments(tmp_path / "a").list()] == ["ptp"]


def test_list_is_of_one_network(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    add(here, "one")
    assert (len(here.list("fabric")), here.list("other")) == (1, [])


def test_another_boot_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    (folder / "boot_id").write_text("6b6c0d5e-1f0b-4f0e-9d3a-0c5a4f3d2b1a\n")
    here = Attachments(folder)
    assert here.list() == []
    assert list(folder.glob("*.json")) == []
    add(here, "two")
    assert held(Attachments(folder)) == ["two 10.1.0.2 fd00::2"]


@pytest.mark.parametrize("marker", [b"", b"other-boot\n", b"\xff\xfe", b"6b6c0d5e-1f", None])
def test_boot_that_cannot_be_told_forgets_nothing(tmp_path: Path, marker: bytes | None) -> None:
    """Rather an address too many in use than one given twice."""
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    if marker is None:
        (folder / "boot_id").unlink()
    else:
        (folder / "boot_id").write_bytes(marker)
    here = Attachments(folder)
    assert held(here) == ["one 10.1.0.2 fd00::2"]
    add(here, "two")
    assert held(Attachments(folder)) == ["one 10.1.0.2 fd00::2", "two 10.1.0.3 fd00::3"]
    assert len((folder / "boot_id").read_text()) == 37, "written again"


def written(**changes: object) -> bytes:
    plain = Attachment(key("bad"), "/run/netns/pod", ())
    return json.dumps({**plain.to_json(), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(written()[:40], id="truncated"),
        pytest.param(b"\xff\x00garbage", id="garbage"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{}", id="no keys"),
        pytest.param(written(format=2), id="newer format"),
        pytest.param(written(network=5), id="network of another type"),
        pytest.param(written(addresses=["10.1.0.256"]), id="no address"),
        pytest.param(written(addresses="10.1.0.2"), id="addresses that are text"),
        pytest.param(written(addresses=None), id="no addresses"),
        pytest.param(written(mtu="x"), id="no mtu"),
        pytest.param(written(arguments=[]), id="arguments that are a list"),
    ],
)
def test_damaged_file_is_named_and_skipped_and_the_rest_kept(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a"
    first = Attachments(folder)
    add(first, "one")
    (folder / "0bad.json").write_bytes(content)
    (folder / "1dir.json").mkdir()
    add(first, "two")
    with caplog.at_level(logging.WARNING):
        second = Attachments(folder)
    assert held(second) == held(first)
    assert "0bad.json" in caplog.text
    assert "1dir.json" in caplog.text


def test_infinite_mtu_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    (folder / "0bad.json").write_text(written(mtu=0).decode().replace('"mtu": 0', '"mtu": 1e999'))
    assert len(Attachments(folder).list()) == 1


def test_dangling_link_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    (folder / "0bad.json").symlink_to(folder / "nowhere")
    assert len(Attachments(folder).list()) == 1


def record_of(folder: Path, name: str) -> Path:
    (path,) = (p for p in folder.glob("*.json") if f'"{name}"' in p.read_text())
    return path


def stop_reading(path: Path, how: str) -> None:
    """Make a record one that this version does not read."""
    text = path.read_text()
    damaged = {
        "cut off": text[: text.index("fd00::2") + 9],
        "newer": text.replace('"format": 1', '"format": 2').replace('"sandbox"', '"netns"'),
        "garbage behind": text[:-1] + "\x00\x00",
    }
    path.write_text(damaged[how])


@pytest.mark.parametrize("how", ["cut off", "newer", "garbage behind"])
def test_addresses_of_a_record_that_cannot_be_read_are_not_given_again(
    tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    path = record_of(folder, "one")
    stop_reading(path, how)
    before = path.read_bytes()
    here = Attachments(folder)
    assert held(here) == []
    assert str(add(here, "two").addresses[0]) == "10.1.0.3"
    assert sorted(map(str, here.held())) == ["10.1.0.2", "fd00::2"]
    with pytest.raises(AttachmentUnreadError):
        add(here, "one")
    assert path.read_bytes() == before, "kept for a version that reads it"
    here.release(key("one"))
    assert (here.held(), path.exists()) == ([], False)
    assert str(add(here, "one").addresses[0]) == "10.1.0.4"


def test_kernel_says_which_addresses_are_in_use_where_no_record_does(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    path = record_of(folder, "one")
    path.write_bytes(b"\x00" * 200)
    here = Attachments(folder)
    link = f"opod{path.stem[:11]}"
    stray = "opod0123456789a"
    there = {link: [ip_address("10.1.0.2")], stray: [ip_address("10.1.0.4")]}
    here.settle(lambda: there)
    given = [str(add(here, name).addresses[0]) for name in ("two", "three")]
    assert given == ["10.1.0.3", "10.1.0.5"]
    del there[stray]
    here.settle(lambda: there)
    assert [str(a) for a in here.held()] == ["10.1.0.2"]
    here.release(key("one"))
    assert here.held() == []


def test_record_whose_pod_is_gone_frees_its_addresses(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    path = record_of(folder, "one")
    path.write_text(path.read_text()[:-2] + "]")
    here = Attachments(folder)
    assert here.held()
    here.settle(dict)
    assert (here.held(), path.exists()) == ([], False)


@pytest.mark.parametrize("how", ["newer", "addresses alone"])
def test_record_that_may_be_of_a_living_pod_holds_its_addresses(tmp_path: Path, how: str) -> None:
    """A newer version knows what its links are called; addresses alone have no link."""
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    path = record_of(folder, "one")
    text = path.read_text()
    newer = text.replace('"format": 1', '"format": 2')
    path.write_text(newer if how == "newer" else text.replace('"opod1"', '""')[:-2])
    here = Attachments(folder)
    here.settle(dict)
    assert len(here.held()) == 2
    assert path.exists()


def test_record_of_this_format_with_unknown_keys_and_without_optional_ones_is_read(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    path = record_of(folder, "one")
    document = json.loads(path.read_text()) | {"added later": {"x": [1]}}
    for name in ("mac", "mtu", "arguments"):
        del document[name]
    path.write_text(json.dumps(document))
    assert held(Attachments(folder)) == ["one 10.1.0.2 fd00::2"]


def test_pods_outside_a_subnet_are_found_and_named(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    add(here, "one")
    add(here, "two", "10.9.0.0/24")
    add(here, "three")
    (stranded,) = here.outside(SUBNET)
    assert stranded.shown == "pod two (container two) 10.9.0.2"
    here.release(key("two"))
    assert here.outside(SUBNET) == []


def test_half_written_file_of_a_killed_agent_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    add(Attachments(folder), "one")
    left = folder / ".0123456789abcdef.json.x1y2z3"
    left.write_text('{"format": 1')
    Attachments(folder)
    assert not left.exists()


def test_attachment_released_before_it_was_complete_does_not_come_back(tmp_path: Path) -> None:
    """An ADD of which the runtime despaired, its DEL, and another pod's ADD, in this order."""
    here = Attachments(tmp_path / "a")
    slow = add(here, "slow", "10.1.0.0/30")
    here.release(slow.key)
    add(here, "other", "10.1.0.0/30")
    try:
        here.complete(slow)
    except Exception:  # noqa: BLE001 - however it is refused
        assert here.get(slow.key) is None
    assert held(here) == ["other 10.1.0.2"]


def test_ten_threads_never_get_one_address_twice(tmp_path: Path) -> None:
    here = Attachments(tmp_path / "a")
    lock, in_use = threading.Lock(), set[IPAddress]()

    def work(number: int) -> None:
        chance, mine = random.Random(number), dict[str, tuple[IPAddress, ...]]()
        for step in range(200):
            if mine and (chance.random() < 0.45 or len(mine) > 7):
                name = chance.choice(sorted(mine))
                with lock:
                    in_use.difference_update(mine.pop(name))
                here.release(key(name))
                continue
            name = f"{number}-{step}"
            try:
                made = add(here, name)
            except PoolExhaustedError:
                continue
            with lock:
                assert in_use.isdisjoint(made.addresses)
                in_use.update(made.addresses)
            mine[name] = here.complete(made).addresses

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(10)))
    assert {a for each in here.list() for a in each.addresses} == in_use
    again = {a.key: a for a in Attachments(tmp_path / "a").list()}
    assert again == {a.key: replace(a, is_complete=True) for a in here.list()}
