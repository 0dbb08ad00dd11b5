"""Probes of ``explain --live`` on a real wire: what is sent, and what becomes of it."""

import socket
import time
from ipaddress import ip_address

import pytest

from overlay.kernel.probe import send_probe
from overlay.policy.verdict import Packet
from overlay.trace.live import what_is
from tests.kernel.netns import MakeNetns, Netns, veth

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
PORT = 8080
TOKEN = bytes(range(200, 216))


@pytest.fixture
def wire(make_netns: MakeNetns) -> tuple[Netns, Netns]:
    near, far = make_netns(), make_netns()
    veth(near, "eth0", far, "eth0")
    for version, length in ((4, 24), (6, 64)):
        for netns, address in zip((near, far), ENDS[version], strict=True):
            netns.ip("addr", "add", f"{address}/{length}", "dev", "eth0")
    return near, far


def seen(near: Netns, version: int) -> list[str]:
    """Send a SYN, and return what passes ``near`` of it until it is answered."""
    source, destination = (ip_address(text) for text in ENDS[version])
    packet = Packet(source, destination, "tcp", port=PORT)
    found: list[str] = []
    with near.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3 << 8)) as tap:
        tap.bind(("eth0", 3))
        tap.settimeout(0.1)
        near.call(lambda: send_probe(packet, TOKEN))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not {"answer", "reset", "refusal"} & {*found}:
            try:
                frame = tap.recv(2048)
            except TimeoutError:
                continue
            what = what_is(frame, TOKEN, destination, syn_to=PORT)
            found += [what] if what is not None else []
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_syn_is_answered_where_somebody_listens(wire: tuple[Netns, Netns], version: int) -> None:
    near, far = wire
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with far.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((ENDS[version][1], PORT))
        listener.listen()
        assert seen(near, version) == ["probe", "answer"]


@pytest.mark.parametrize("version", [4, 6])
def test_syn_is_reset_where_nobody_listens(wire: tuple[Netns, Netns], version: int) -> None:
    assert seen(wire[0], version) == ["probe", "reset"]


@pytest.mark.parametrize("version", [4, 6])
def test_syn_that_a_firewall_refuses(wire: tuple[Netns, Netns], version: int) -> None:
    near, far = wire
    rule = f"tcp dport {PORT} reject with icmpx admin-prohibited"
    chain = f"chain i {{ type filter hook input priority 0; {rule}; }};"
    far.nft("-f", "-", stdin=f"table inet fw {{ {chain} }}")
    assert seen(near, version) == ["probe", "refusal"]
