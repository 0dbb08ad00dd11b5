"""The parts that benches stand on: what they parse, and the proxy that is far away."""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from bench import packer, peers, start
from bench.agents import flags
from bench.bed import Node
from bench.echo import Echoes, ask, serve
from bench.entries import Identity, parse
from bench.gateway import is_whole, parse_metrics
from bench.options import AgentCommand
from bench.proxy import DelayProxy
from bench.usage import cpu_s, memory_mib, usage
from overlay.kernel import messages
from overlay.kernel.rtnl import Request
from overlay.lab.etcd import free_port
from overlay.model.kernel import FdbEntry, Neighbor, Op, Route
from overlay.model.lease import parse_attributes
from overlay.plan.planner import desired

INDEX = {"overlay.1": 7}


def encoded(op: Op) -> Request:
    return messages.request(op, INDEX)


def entry(request: Request) -> tuple[Identity, bytes | None] | None:
    return parse(request.kind, request.body, 0, len(request.body))


def test_entries_of_a_peer_are_what_the_planner_wants_in_the_main_table() -> None:
    objects = desired(peers.site(), peers.leases([3])).objects.values()
    kinds = (Route, Neighbor, FdbEntry)
    found = [entry(encoded(Op("set", item))) for item in objects if isinstance(item, kinds)]
    assert {each[0]: each[1] for each in found if each is not None} == peers.entries([3])


def test_deleted_entries_are_gone() -> None:
    objects = desired(peers.site(), peers.leases([3])).objects.values()
    kinds = (Neighbor, FdbEntry)
    deleted = [entry(encoded(Op("del", item))) for item in objects if isinstance(item, kinds)]
    neighbor = next(each for each in deleted if each is not None and each[0][0] == "neigh")
    assert neighbor[1] is None
    assert set(peers.gone([3]).values()) == {None}


def test_floor_s_own_packing_is_the_entries_that_are_waited_for() -> None:
    found = [_packed_entry(message) for message in peers.packed([3, 4], 7)]
    assert dict(each for each in found if each is not None) == peers.entries([3, 4])


def test_deletion_names_what_was_added() -> None:
    gone = [_packed_entry(packer.deletion(message)) for message in peers.packed([3], 7)]
    assert dict(each for each in gone if each is not None) == peers.gone([3])


def _packed_entry(message: bytes) -> tuple[Identity, bytes | None] | None:
    length, kind = struct.unpack_from("=IH", message)
    assert length == len(message)
    return parse(kind, message, 16, length)


def test_own_leases_say_who_wrote_them_and_flannel_s_do_not() -> None:
    key = "/coreos.com/network/subnets/10.1.3.0-24"
    own, flannel = peers.pairs([3], are_own=True)[key], peers.pairs([3])[key]
    assert b'"Overlay":{"NodeID":' in own
    assert b"Overlay" not in flannel
    assert parse_attributes("x", own).public == parse_attributes("x", flannel).public


def test_start_waits_for_the_frame_of_a_request() -> None:
    here, there = socket.socketpair()
    settings, window = b"\0\0\6\4\0\0\0\0\0" + b"x" * 6, b"\0\0\4\x08\0\0\0\0\0" + b"y" * 4
    with here, there:
        here.settimeout(10)
        there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + window)
        there.sendall(b"\0\0\2\1\4\0\0\0\1" + b"zz")
        start.await_request(here)
        assert here.recv(2) == b"zz"
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            start.await_request(here)


@pytest.mark.parametrize(
    ("family", "state", "expected"),
    [
        pytest.param(2, 0x80, b"\x02\0\0\0\0\1", id="permanent"),
        pytest.param(2, 0x02, None, id="reachable: the kernel's own"),
        pytest.param(2, 0x20, None, id="failed: what is left of a deleted one"),
    ],
)
def test_neighbor_counts_while_it_is_permanent(
    family: int, state: int, expected: bytes | None
) -> None:
    body = struct.pack("=BBHiHBB", family, 0, 0, 7, state, 0, 0)
    body += struct.pack("=HH4s", 8, 1, bytes((10, 1, 0, 0)))
    body += struct.pack("=HH6sxx", 10, 2, b"\x02\0\0\0\0\1")
    assert parse(28, body, 0, len(body)) == (("neigh", bytes((10, 1, 0, 0))), expected)


@pytest.mark.parametrize(
    ("table", "kind", "protocol"),
    [
        pytest.param(100, 1, 79, id="another table"),
        pytest.param(254, 7, 79, id="unreachable"),
        pytest.param(254, 1, 2, id="the kernel's own"),
    ],
)
def test_route_that_leads_to_no_peer_is_none(table: int, kind: int, protocol: int) -> None:
    body = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, table, protocol, 0, kind, 0)
    assert parse(24, body, 0, len(body)) is None


def test_peers_are_listed_apart_from_the_measured_nodes_own() -> None:
    assert peers.peer(0).subnet.key == "10.1.0.0-24"
    assert peers.peer(19_999).subnet.key == "10.79.31.0-24"
    assert len(peers.pairs(range(300))) == 300
    assert len(peers.entries(range(300))) == 900


@pytest.mark.parametrize("ours", [True, False])
def test_another_agent_gets_the_flags_that_flannel_has(ours: bool, tmp_path: Path) -> None:
    node = Node("n", "172.16.0.1", tmp_path)
    command = flags(AgentCommand("x", ("x", "-v=1"), ours), node, "http://etcd:1")
    assert command[:3] == ["x", "-v=1", "-etcd-endpoints=http://etcd:1"]
    assert any(word.startswith("--state-dir") for word in command) is ours


def test_messages_that_etcd_received_are_counted_by_method() -> None:
    text = (
        "# HELP grpc_server_msg_received_total Total\n"
        'grpc_server_msg_received_total{grpc_method="Range",grpc_service="etcdserverpb.KV"} 3\n'
        'grpc_server_msg_received_total{grpc_method="Watch",grpc_service="a"} 1e+02\n'
        'grpc_server_msg_sent_total{grpc_method="Range",grpc_service="etcdserverpb.KV"} 9\n'
    )
    assert parse_metrics(text) == {"Range": 3, "Watch": 100}


def test_answer_of_etcd_is_whole_at_its_end_and_not_before() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{..}"
    assert [is_whole(answer[:n]) for n in range(len(answer) + 1)] == [False] * len(answer) + [True]


def test_refused_put_is_said() -> None:
    with pytest.raises(RuntimeError, match="no space"):
        is_whole(b"HTTP/1.1 503 X\r\nContent-Length: 8\r\n\r\nno space")


def test_usage_has_living_children_and_misses_no_ended_one() -> None:
    program = "import subprocess, sys; subprocess.run(['cat'], check=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as parent:
        path = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 20
        while not path.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        alone = memory_mib(Path(f"/proc/{parent.pid}/status").read_text(), "VmRSS")
        found = usage(parent.pid)
        parent.communicate()
    assert found.rss_mib > alone
    assert found.peak_mib >= found.rss_mib
    with pytest.raises(ProcessLookupError):
        usage(parent.pid)


def test_usage_bears_children_that_end_meanwhile() -> None:
    program = "import subprocess\nwhile True: subprocess.run(['true'])"
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        try:
            found = [usage(parent.pid) for _ in range(2000)]
        finally:
            parent.kill()
    assert found[-1].cpu_s >= found[0].cpu_s


def test_processor_time_has_ended_children_and_a_name_with_brackets() -> None:
    stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1"
    assert cpu_s(stat) == pytest.approx(1.27)  # 100 ticks a second, as on all of Linux


def test_memory_is_read_by_name() -> None:
    assert memory_mib("VmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n", "VmRSS") == 1.0
    assert memory_mib("Name:\tx\n", "VmRSS") == 0.0


@contextmanager
def far_echo(sleeps: list[float], delay_s: float) -> Iterator[socket.socket]:
    """Yield a connection through a proxy, whose pauses are noted and not made."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        target = ("127.0.0.1", server.getsockname()[1])
        proxy = DelayProxy(("127.0.0.1", 0), target, delay_s, lambda: 0.0, sleeps.append)
        stack.enter_context(proxy)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 10))
        client.settimeout(10)
        there = stack.enter_context(server.accept()[0])
        thread = threading.Thread(target=answer, args=(there,))
        thread.start()
        yield client
        with suppress(OSError):  # the test did it
            client.shutdown(socket.SHUT_WR)
        thread.join(10)
        assert not thread.is_alive()


def answer(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def test_proxy_keeps_every_piece_back_in_both_directions() -> None:
    sleeps: list[float] = []
    with far_echo(sleeps, 3.0) as client:
        client.sendall(b"ping")
        assert client.recv(16) == b"ping"
        assert sleeps == [3.0, 3.0]


def test_proxy_passes_all_on_in_order_and_then_the_end() -> None:
    sent = bytes(range(256)) * 4096
    with far_echo([], 0.0) as client:
        threading.Thread(target=client.sendall, args=(sent,)).start()
        received = b""
        while len(received) < len(sent):
            received += client.recv(65536)
        assert received == sent
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_proxy_closes_at_once_where_nobody_serves() -> None:
    proxy = DelayProxy(("127.0.0.1", 0), ("127.0.0.1", free_port()), 0.0)
    with proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.settimeout(10)
        assert client.recv(1) == b""


def eventually_asked(port: int) -> Echoes:
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask("127.0.0.1", 0.03, port)
        except OSError:  # nobody serves yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_echo_counts_what_comes_back() -> None:
    port = free_port()
    threading.Thread(target=serve, args=("127.0.0.1", port), daemon=True).start()
    found = eventually_asked(port)
    assert 0 < found.round_trip_s < 1
    assert found.requests_per_s > 1
    assert found.connections_per_s > 1
