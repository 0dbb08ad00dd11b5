"""The kernel's connections: marked bit by bit, and a marked one is dropped on both ways."""

import socket
from ipaddress import ip_address

import pytest

from overlay.kernel import conntrack
from overlay.model.netpol import NetworkPolicy
from overlay.policy.network.compile import compile_policies
from overlay.policy.network.midway import CUT_MARK, TRACKING, guarded
from overlay.policy.network.table import POLICY_TABLE
from tests.kernel.netns import eventually
from tests.kernel.test_policy_table import FROM_A_ON_80, A, B, Node, app, node, world

__all__ = ["node"]
pytestmark = pytest.mark.kernel


def test_connections_are_tracked_before_there_is_a_policy_at_no_packet_s_cost(node: Node) -> None:
    node.netns.nft("-f", "-", stdin=TRACKING.transaction)
    assert "hook" not in node.netns.nft("list", "table", *POLICY_TABLE.split())
    a, b = node.pods["a"], node.pods["b"]
    with (
        b.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((B, 81))
        server.settimeout(20)
        client.bind((A, 0))
        client.sendto(b"1", (B, 81))
        assert server.recv(9) == b"1"
        found = node.netns.call(lambda: conntrack.connections({ip_address(A)}))
        assert client.getsockname()[1] in {each.original.source_port for each in found}


def test_marked_connection_passes_no_packet_until_the_mark_goes(node: Node) -> None:
    policy = NetworkPolicy("x", "p", app("b"), ingress=(FROM_A_ON_80,))
    table = guarded(compile_policies(world(policy), "n1"))
    node.netns.nft("-f", "-", stdin=table.transaction)
    a, b = node.pods["a"], node.pods["b"]
    with (
        b.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((B, 80))
        client.bind((A, 0))
        client.connect((B, 80))
        for each in (server, client):
            each.settimeout(20)
        client.send(b"1")
        assert server.recv(9) == b"1"
        server.sendto(b"2", client.getsockname())
        assert client.recv(9) == b"2"
        about = {ip_address(A)}

        def entry() -> conntrack.Connection:
            found = node.netns.call(lambda: conntrack.connections(about))
            (one,) = [e for e in found if e.original.source_port == client.getsockname()[1]]
            return one

        assert node.netns.call(lambda: conntrack.mark([entry()], 6, is_set=True)) == 1
        assert node.netns.call(lambda: conntrack.mark([entry()], CUT_MARK, is_set=True)) == 1
        assert entry().mark == CUT_MARK | 6
        client.send(b"3")
        server.sendto(b"4", client.getsockname())
        eventually(lambda: node.refused() == 2, what="both being counted")
        assert node.netns.call(lambda: conntrack.mark([entry()], CUT_MARK, is_set=False)) == 1
        assert entry().mark == 6
        client.send(b"5")
        assert server.recv(9) == b"5"
        server.sendto(b"6", client.getsockname())
        assert client.recv(9) == b"6"
        gone = entry()
        assert node.netns.call(lambda: conntrack.cut([gone])) == 1
        assert node.netns.call(lambda: conntrack.mark([gone], 1, is_set=True)) == 0
