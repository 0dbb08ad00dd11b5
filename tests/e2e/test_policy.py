"""Network policies on three nodes: what agents make of them, asked with real connections."""

import contextlib
import functools
import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from overlay.policy.network.table import POLICY_TABLE
from tests.e2e.hub import HubNode
from tests.e2e.policies import (
    ALL,
    PORT,
    STREAM,
    TCP,
    Fabric,
    Flood,
    Outpour,
    Sniffer,
    comes_to,
    is_silent,
    plugin,
    seen,
    talks,
)
from tests.kernel.netns import Netns, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NOBODY: set[str] = set()
BAD_BLOCK = "from: [{ipBlock: {cidr: 10.0.0.0/40}}], ports: [{port: 80}"


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    made: list[Fabric] = []
    with contextlib.ExitStack() as stack:
        found = Fabric.__new__(Fabric)
        stack.callback(lambda: found.hub.close())
        found.__init__(tmp_path_factory.mktemp("fabric"))  # type: ignore[misc]  # closed whatever fails
        made.append(found)
        yield found


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as found:
        yield found


def table(node: HubNode) -> str:
    """Return the table as nft lists it, without what it counted."""
    return node.netns.run("nft", "-s", "list", "table", *POLICY_TABLE.split(), check=False)


def selecting(**labels: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": labels}}


def test_labels_decide_who_reaches_an_isolated_pod(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    one, two, _ = fabric.nodes
    server = fabric.pod(one, "s1").listen(stack)
    near, far = fabric.pod(one, "near"), fabric.pod(two, "far")
    own, other = fabric.party(one), fabric.party(two)
    for client in (near, far, own, other):
        comes_to(client, server, ALL)
    fabric.label("s1", "app=s1")
    fabric.apply("s1", {**selecting(app="s1"), "policyTypes": ["Ingress"]})
    stack.callback(fabric.delete, "s1")
    for client in (near, far, other):
        comes_to(client, server, NOBODY)
    assert seen(own, server) == ALL  # probes of the node that the pod is on
    only = [{"from": [selecting(role="client")], "ports": [{"port": PORT}]}]
    fabric.apply("s1", {**selecting(app="s1"), "ingress": only})
    for name in ("near", "far"):
        fabric.label(name, "role=client")
    for client in (near, far):
        comes_to(client, server, TCP)
    fabric.label("far", "role-")
    comes_to(far, server, NOBODY)
    assert seen(near, server) == TCP
    said = fabric.ctl("policy", "test", "shop/far", "shop/s1", f"--port={PORT}", ok=(1,))
    assert "ingress of shop/s1: denied by shop/s1" in said
    said = fabric.ctl("policy", "test", "shop/near", "shop/s1", f"--port={PORT}")
    assert "allowed by shop/s1 ingress[0]" in said


def test_egress_is_judged_to_pods_nodes_and_the_outside(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    one, two, _ = fabric.nodes
    pod = fabric.pod(one, "out", labels={"app": "out"})
    far = fabric.pod(two, "target").listen(stack)
    node, other = fabric.party(one).listen(stack), fabric.party(two).listen(stack)
    outside = fabric.outside.listen(stack)
    for target in (far, node, other, outside):
        comes_to(pod, target, ALL)
    fabric.apply("out", {**selecting(app="out"), "policyTypes": ["Egress"]})
    stack.callback(fabric.delete, "out")
    for target in (far, other, outside):
        comes_to(pod, target, NOBODY)
    blocks = [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.2/32"]}}]
    fabric.apply(
        "out", {**selecting(app="out"), "policyTypes": ["Egress"], "egress": [{"to": blocks}]}
    )
    comes_to(pod, outside, {"tcp4", "udp4"})
    assert seen(pod, other) == NOBODY
    assert seen(pod, far) == NOBODY


def test_connection_that_a_new_policy_forbids_is_cut_and_an_allowed_one_is_not(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    one, two, _ = fabric.nodes
    server = fabric.pod(one, "cut").listen(stack)
    friend, stranger = fabric.pod(two, "friend"), fabric.pod(two, "stranger")
    fabric.label("friend", "role=friend")
    fabric.label("cut", "app=cut")
    open_: dict[str, socket.socket] = {}
    for client in (friend, stranger):
        connection = client.netns.call(
            lambda: socket.create_connection((server.addresses[0], PORT), timeout=10)
        )
        open_[client.name] = stack.enter_context(connection)
        assert talks(connection)
    # The server sends of itself here: its packets must not bring the connection back.
    streamed = stranger.netns.call(
        lambda: socket.create_connection((server.addresses[0], PORT), timeout=10)
    )
    stack.enter_context(streamed).sendall(STREAM)
    assert not is_silent(streamed)
    allowed = [{"from": [selecting(role="friend")]}]
    fabric.apply("cut", {**selecting(app="cut"), "ingress": allowed})
    stack.callback(fabric.delete, "cut")
    eventually(lambda: not talks(open_["stranger"]), timeout_s=20, what="the cut")
    eventually(lambda: is_silent(streamed), timeout_s=20, what="the end of the stream")
    assert is_silent(streamed)
    assert talks(open_["friend"], 10)
    events = fabric.ctl("events", "--kind", "policy-cut")
    assert "connections that policies forbid are cut" in events


def test_cut_connection_comes_back_from_neither_side_until_it_is_allowed(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    """Egress of the one who began it: a stream of the other's, datagrams of both, and ping."""
    one, two, _ = fabric.nodes
    client = fabric.pod(one, "leaver")
    fabric.label("leaver", "app=leaver")
    server = fabric.pod(two, "held").listen(stack)
    at = server.addresses[0]
    stream = client.netns.call(lambda: socket.create_connection((at, PORT), timeout=10))
    stack.enter_context(stream).sendall(STREAM)
    assert not is_silent(stream)
    asker = stack.enter_context(client.netns.socket(socket.AF_INET, socket.SOCK_DGRAM))
    answerer = stack.enter_context(server.netns.socket(socket.AF_INET, socket.SOCK_DGRAM))
    answerer.bind((at, 9999))
    asker.bind((client.addresses[0], 9998))
    pinger = stack.enter_context(client.netns.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    ways = {
        "there": (asker, (at, 9999), answerer, b"there"),
        "back": (answerer, (client.addresses[0], 9998), asker, b"back"),
        "ping": (pinger, (at, 0), pinger, echo_request(77)),
    }

    def open_ways() -> set[str]:
        return {name for name, way in ways.items() if arrives(*way)}

    eventually(lambda: open_ways() == set(ways), timeout_s=20, what="everything")
    fabric.apply("leaver", {**selecting(app="leaver"), "policyTypes": ["Egress"]})
    eventually(lambda: not open_ways(), timeout_s=20, what="the cut of datagrams and ping")
    eventually(lambda: is_silent(stream), timeout_s=20, what="the end of the stream")
    # Each side has tried to bring it back by now, several times.
    assert not open_ways()
    assert is_silent(stream)
    fabric.delete("leaver")
    eventually(lambda: open_ways() == set(ways), timeout_s=20, what="everything again")
    eventually(lambda: not is_silent(stream), timeout_s=60, what="the stream again")


def echo_request(ident: int) -> bytes:
    """Return an ICMP echo request without content."""
    return struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - ident - 1, ident, 1)


def arrives(source: socket.socket, to: tuple[str, int], target: socket.socket, data: bytes) -> bool:
    """Return whether a packet brings ``target`` something of its own, within a moment."""
    target.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while target.recv(1 << 16):
            pass
    target.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        source.sendto(data, to)
        return bool(target.recv(1 << 16))
    return False


def test_policies_stay_in_force_without_agent_and_without_store(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    three = fabric.nodes[2]
    server, client = fabric.pod(three, "kept").listen(stack), fabric.pod(three, "asks")
    fabric.label("kept", "app=kept")
    comes_to(client, server, ALL)
    fabric.apply("kept", {**selecting(app="kept"), "policyTypes": ["Ingress"]})
    comes_to(client, server, NOBODY)
    before = table(three)
    for ending in (signal.SIGKILL, signal.SIGTERM):
        os.kill(three.agents[-1].pid, ending)
        three.agents[-1].wait(20)
        assert table(three) == before
        assert seen(client, server) == NOBODY
        running = three.start()
        running.wait_ready()
        assert seen(client, server) == NOBODY
    fabric.hub.etcd.stop()
    try:
        three.netns.nft("flush", "ruleset")
        eventually(lambda: "drop" in table(three), timeout_s=20, what="the repair")
        comes_to(client, server, NOBODY)
        assert seen(client, server) == NOBODY
    finally:
        fabric.hub.start_etcd()
    assert "changed the table inet overlay_policy" in running.log
    fabric.delete("kept")
    comes_to(client, server, ALL)
    eventually(lambda: "map" not in table(three), timeout_s=20, what="no rules without a policy")


def test_pods_on_one_bridge_are_kept_apart(fabric: Fabric, stack: contextlib.ExitStack) -> None:
    two = fabric.nodes[1]
    server = fabric.pod(two, "b1", mode="bridge").listen(stack)
    near = fabric.pod(two, "b2", mode="bridge")
    routed = fabric.pod(two, "b3")
    fabric.label("b1", "app=b1")
    for client in (near, routed):
        comes_to(client, server, ALL)
    only = [{"from": [selecting(role="b")], "ports": [{"port": PORT}]}]
    fabric.apply("b1", {**selecting(app="b1"), "ingress": only})
    stack.callback(fabric.delete, "b1")
    for client in (near, routed):
        comes_to(client, server, NOBODY)
    fabric.label("b2", "role=b")
    comes_to(near, server, TCP)
    two.netns.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    comes_to(near, server, TCP)
    shown = fabric.ctl("events", "--kind", "drift-repaired", node=1)
    assert "bridged frames" in shown


def test_link_local_addresses_are_no_way_around_policies(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    two = fabric.nodes[1]
    routed = fabric.pod(two, "l1")
    ends = [fabric.pod(two, name, mode="bridge") for name in ("l2", "l3")]
    link = json.loads(two.netns.run("ip", "-j", "-6", "route", "get", routed.addresses[1]))[0][
        "dev"
    ]
    ways = {
        "a pod to its node": (routed.netns, "eth0", two.netns, link),
        "pod to pod": (ends[0].netns, "eth0", ends[1].netns, "eth0"),
    }

    def open_ways() -> set[str]:
        return {name for name, way in ways.items() if arrives_by_link_local(*way)}

    eventually(lambda: open_ways() == set(ways), timeout_s=20, what="datagrams")
    for name, types in (("l1", "Egress"), ("l3", "Ingress")):
        fabric.label(name, f"app={name}")
        fabric.apply(name, {**selecting(app=name), "policyTypes": [types]})
        stack.callback(fabric.delete, name)
    eventually(lambda: not open_ways(), timeout_s=20, what="silence")


def arrives_by_link_local(source: Netns, link: str, target: Netns, at: str) -> bool:
    """Return whether a datagram arrives at the first link-local address of ``at``."""
    shown = json.loads(target.run("ip", "-j", "-6", "addr", "show", "dev", at, "scope", "link"))
    address = next(a["local"] for a in shown[0]["addr_info"] if "local" in a)
    scopes = [
        netns.call(functools.partial(socket.if_nametoindex, name))
        for netns, name in ((source, link), (target, at))
    ]
    with (
        source.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
        target.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
    ):
        server.bind((address, 9997, 0, scopes[1]))
        server.settimeout(0.5)
        client.sendto(b"?", (address, 9997, 0, scopes[0]))
        with contextlib.suppress(TimeoutError):
            return server.recv(1) == b"?"
    return False


@pytest.mark.parametrize("number", [0, 1], ids=["IPv4", "IPv6"])
def test_routed_pod_with_a_forged_address_is_heard_by_nobody(
    fabric: Fabric, stack: contextlib.ExitStack, number: int
) -> None:
    """It calls itself a pod that a policy lets in; only what it sends as itself arrives."""
    one, two, _ = fabric.nodes
    names = [f"{word}{number}" for word in ("t", "w", "u")]
    server, friend, liar = (
        fabric.pod(node, name) for node, name in zip((two, one, one), names, strict=True)
    )
    target, trusted, own = (each.addresses[number] for each in (server, friend, liar))
    family = socket.AF_INET6 if number else socket.AF_INET
    liar.netns.ip("addr", "add", f"{trusted}/{128 if number else 32}", "dev", "lo")
    sockets = [
        each.netns.socket(family, socket.SOCK_DGRAM) for each in (server, friend, liar, liar)
    ]
    for sock, address in zip(sockets, (target, trusted, trusted, own), strict=True):
        stack.callback(sock.close)
        sock.bind((address, 9995))  # each in a namespace, or at an address, of its own
    listening, honest, forging, itself = sockets
    listening.settimeout(20)
    honest.sendto(b"friend", (target, 9995))
    assert listening.recv(9) == b"friend"
    forging.sendto(b"forged", (target, 9995))
    itself.sendto(b"itself", (target, 9995))
    assert listening.recv(9) == b"itself"


def test_audit_lets_through_and_tells_names_and_counts(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    one = fabric.nodes[0]
    server, client = fabric.pod(one, "tried").listen(stack), fabric.pod(one, "tries")
    fabric.label("tried", "app=tried")
    fabric.ctl("namespace", "audit", "shop", "on")
    stack.callback(fabric.ctl, "namespace", "audit", "shop", "off")
    fabric.apply("tried", {**selecting(app="tried"), "policyTypes": ["Ingress"]})
    stack.callback(fabric.delete, "tried")
    line = "shop/tries ("
    eventually(
        lambda: (
            seen(client, server) == ALL
            and "would be denied (audit) by ingress of shop/tried"
            in fabric.ctl("events", "--kind", "policy-denied")
        ),
        timeout_s=20,
        what="what audit tells",
    )
    assert line in fabric.ctl("events", "--kind", "policy-denied")
    listed = [x for x in fabric.ctl("policy", "list").splitlines() if " tried " in x]
    assert len(listed) == 1
    assert "audit" in listed[0]
    _, metrics = fabric.running[0].get("/metrics")
    counted = 'denied_packets_total{audit="true",direction="ingress",policy="shop/tried"}'
    assert any(counted in line and not line.endswith(" 0.0") for line in metrics.splitlines())


def test_change_is_shown_before_it_is_made(fabric: Fabric, tmp_path: Path) -> None:
    one = fabric.nodes[0]
    fabric.pod(one, "seen1", labels={"app": "seen1"})
    fabric.pod(one, "seen2", labels={"app": "seen2"})
    eventually(
        lambda: "seen2" in fabric.ctl("pod", "list"), timeout_s=20, what="the pods in the store"
    )
    file = tmp_path / "policy.yaml"
    file.write_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        "metadata: {name: seen, namespace: shop}\n"
        "spec: {podSelector: {matchLabels: {app: seen1}}, "
        "ingress: [{ports: [{port: 80}, {port: 90, endPort: 99, protocol: UDP}]}]}\n"
    )
    said = fabric.ctl("policy", "diff", str(file), ok=(1,))
    (line,) = [x for x in said.splitlines() if x.startswith("shop/seen2") and "shop/seen1" in x][:1]
    assert "closes" in line
    assert "TCP 0-79, TCP 81-65535" in line
    assert "opens" not in said
    drawn = fabric.ctl("policy", "graph", "--namespace=shop")
    assert drawn.startswith("<svg")
    assert "shop/seen2" in drawn
    file.write_text(file.read_text().replace("ports: [{port: 80}", BAD_BLOCK))
    said = fabric.ctl("policy", "apply", "-f", str(file), ok=(2,))
    assert "spec.ingress[0].from[0].ipBlock.cidr '10.0.0.0/40'" in said


def test_no_packet_of_an_isolated_pod_passes_before_its_first_rule(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    """Pods start four at a time while two others flood all addresses of their node's subnet.

    Each sends itself to one of those two, on its node and elsewhere, from
    before it has an interface; IPv4 and IPv6.
    """
    one, two, _ = fabric.nodes
    first = fabric.pod(one, "f0")
    v4, v6 = (
        address.rpartition(sep)[0] for address, sep in zip(first.addresses, ".:", strict=True)
    )
    targets = [f"{v4}.{n}" for n in range(1, 255)] + [f"{v6}:{n:x}" for n in range(1, 255)]
    fabric.apply("starts", {**selecting(app="starts"), "policyTypes": ["Ingress", "Egress"]})
    stack.callback(fabric.delete, "starts")
    eventually(
        lambda: fabric.nodes[0].status()["policy"]["policies"] >= 1, timeout_s=20, what="the policy"
    )
    sinks: list[Sniffer] = []
    out: tuple[str, ...] = ()
    for node, name in ((one, "f1"), (two, "f2")):
        party = fabric.pod(node, name)
        stack.enter_context(Flood(party, targets))
        sinks.append(Sniffer(party.netns))
        stack.callback(sinks[-1].close)
        out += party.addresses
    open_pod = fabric.hub.netns()
    control = Sniffer(open_pod)
    stack.callback(control.close)
    with Outpour(open_pod, out):
        assert plugin(one, "ADD", "open", open_pod)[0] == 0
        for sniffer, word in ((control, b"flood"), *((sink, b"inside") for sink in sinks)):
            met = {4: 0, 6: 0}

            def is_met(sniffer: Sniffer = sniffer, word: bytes = word, met: Any = met) -> bool:
                met.update({v: met[v] + n for v, n in sniffer.floods(word).items()})
                return all(met.values())

            eventually(is_met, timeout_s=20, what=f"{word!r}, of an open pod")
    for sink in sinks:
        sink.floods(b"inside")

    def start(number: int) -> int:
        netns = fabric.hub.netns()
        sniffer = Sniffer(netns)
        try:
            with Outpour(netns, out):
                status, result = plugin(one, "ADD", f"i{number}", netns, labels={"app": "starts"})
                assert status == 0, result
                arrived = sum(sniffer.floods().values())
                status, result = plugin(one, "DEL", f"i{number}", None)
                assert status == 0, result
            return arrived
        finally:
            sniffer.close()

    with ThreadPoolExecutor(4) as pool:
        arrived = list(pool.map(start, range(200)))
    assert all(control.floods().values()), "the flood went on all the time"
    assert sum(arrived) == 0
    assert [sink.floods(b"inside") for sink in sinks] == [{4: 0, 6: 0}] * 2


def test_nft_that_fails_leaves_what_was_in_force_and_the_node_not_ready(
    fabric: Fabric, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    three = fabric.nodes[2]
    fails = tmp_path / "fails"
    shim = tmp_path / "nft"
    shim.write_text(
        f'#!/bin/sh\nif [ -e {fails} ]; then cat >/dev/null; echo "broken" >&2; exit 1; fi\n'
        'PATH=/usr/sbin:/usr/bin:/sbin:/bin exec nft "$@"\n'
    )
    shim.chmod(0o755)
    os.kill(three.agents[-1].pid, signal.SIGTERM)
    three.agents[-1].wait(20)
    running = three.start(prefix=["env", f"PATH={tmp_path}:{os.environ['PATH']}"])
    running.wait_ready()
    server, client = fabric.pod(three, "n1").listen(stack), fabric.pod(three, "n2")
    fabric.label("n1", "app=n1")
    fabric.apply("n1", {**selecting(app="n1"), "policyTypes": ["Ingress"]})
    stack.callback(fabric.delete, "n1")
    comes_to(client, server, NOBODY)
    before = table(three)
    fails.touch()
    fabric.apply("n1", {**selecting(app="n1"), "ingress": [{}]})
    running.wait_for_reason("network policies")
    assert table(three) == before
    assert seen(client, server) == NOBODY
    status, result = plugin(three, "ADD", "n3", fabric.hub.netns(), labels={"app": "n1"})
    assert status == 1
    assert "network policies are not in force" in result["msg"]
    fails.unlink()
    running.wait_ready()
    comes_to(client, server, ALL)


def test_garbage_in_the_store_is_named_and_reset_leaves_no_table(
    fabric: Fabric, stack: contextlib.ExitStack
) -> None:
    three = fabric.nodes[2]
    server, client = fabric.pod(three, "g1").listen(stack), fabric.pod(three, "g2")
    fabric.label("g1", "app=g1")
    fabric.apply("g1", {**selecting(app="g1"), "policyTypes": ["Ingress"]})
    stack.callback(fabric.delete, "g1")
    comes_to(client, server, NOBODY)
    key = "policies/networkpolicies/shop/g1"
    assert fabric.hub.store(f"s._writer.put_text({key!r}, 'x', s.policies()._table()._values["
                            "'networkpolicies/shop/g1'].mod_revision)")  # fmt: skip
    eventually(
        lambda: any(p["about"] == "policies" for p in three.status()["problems"]),
        timeout_s=20,
        what="the problem",
    )
    assert seen(client, server) == NOBODY
    os.kill(three.agents[-1].pid, signal.SIGTERM)
    three.agents[-1].wait(20)
    command = f"--state-dir={three.state}"
    said = three.overlayctl("node", "reset", "--yes", command)
    assert f"table {POLICY_TABLE}" in said
    assert not table(three)
