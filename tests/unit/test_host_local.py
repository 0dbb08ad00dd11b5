"""What the plugin host-local holds: read as it writes, let go for the one who is deleted."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from overlay.agent.attachments import Attachments
from overlay.agent.host_local import HostLocal
from overlay.ipam.pool import AddressTakenError, Demand
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.subnet import parse_subnet

SUBNET = parse_subnet("10.244.3.0/24")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory as host-local leaves it (backend/disk, version 1.1)."""
    network = tmp_path / "networks" / "cbr0"
    network.mkdir(parents=True)
    (network / "10.244.3.2").write_bytes(b"one\r\neth0")
    (network / "10.244.3.3").write_bytes(b"two\r\neth0")
    (network / "fd00::3").write_bytes(b"two\r\neth0")
    (network / "last_reserved_ip.0").write_bytes(b"10.244.3.3")
    (network / "lock").write_bytes(b"")
    (tmp_path / "networks" / "stray").write_text("10.0.0.1")
    return tmp_path / "networks"


def addresses(*texts: str) -> frozenset[IPAddress]:
    return frozenset(map(ip_address, texts))


def test_addresses_of_all_networks_are_read(place: Path) -> None:
    assert HostLocal(place).addresses() == addresses("10.244.3.2", "10.244.3.3", "fd00::3")
    assert HostLocal(place / "nowhere").addresses() == frozenset()


@pytest.mark.parametrize("interface", ["eth0", "net1"])
def test_only_what_a_container_had_at_its_interface_is_let_go(place: Path, interface: str) -> None:
    held = HostLocal(place)
    gone = held.release("two", interface)
    if interface == "eth0":
        assert gone == addresses("10.244.3.3", "fd00::3")
        assert held.addresses() == addresses("10.244.3.2")
        assert held.release("two", interface) == frozenset()
    else:
        assert gone == frozenset()
        assert len(held.addresses()) == 3


@pytest.mark.parametrize("content", [b"", b"two", b"two\r\neth0\r\nmore", b"\xff\xfe"])
def test_a_file_that_says_something_else_holds_its_address(place: Path, content: bytes) -> None:
    (place / "cbr0" / "10.244.3.3").write_bytes(content)
    held = HostLocal(place)
    assert ip_address("10.244.3.3") not in held.release("two", "eth0")
    assert ip_address("10.244.3.3") in held.addresses()


def test_nobody_gets_what_is_held_until_it_is_let_go(place: Path, tmp_path: Path) -> None:
    held = HostLocal(place)
    attachments = Attachments(tmp_path / "attachments", others=held.addresses)
    given = [_add(attachments, f"c{n}").addresses[0] for n in range(3)]
    assert not addresses("10.244.3.2", "10.244.3.3") & set(given)
    with pytest.raises(AddressTakenError, match=r"10\.244\.3\.3 is in use"):
        _add(attachments, "wants", "10.244.3.3")
    held.release("two", "eth0")
    assert _add(attachments, "wants", "10.244.3.3").addresses == (ip_address("10.244.3.3"),)


def _add(attachments: Attachments, name: str, *wanted: str) -> Attachment:
    key = AttachmentKey("net", name, "eth0")
    demand = Demand(tuple(map(ip_address, wanted)), ())
    return attachments.add(SUBNET, demand, key, lambda found: Attachment(key, "/x", found))
