"""Policies before and after the translation of Services, by rules in kube-proxy's form.

The rules are written here, chain by chain as kube-proxy makes them of one
Service with one endpoint: ``pkg/proxy/nftables/proxier.go`` and
``pkg/proxy/iptables/proxier.go`` of Kubernetes. kube-proxy itself does not run.
"""

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from overlay.model.netpol import BlockPeer, NetworkPolicy, PodPeer, PortMatch, Rule
from overlay.policy.network.compile import compile_policies
from overlay.policy.network.midway import guarded
from tests.kernel.netns import MakeNetns, Netns, veth
from tests.kernel.test_policy_table import A, B, C, Node, app, node, world

__all__ = ["node"]
pytestmark = pytest.mark.kernel

VIP, NODE_PORT, PODS = "10.96.0.10", 30080, "10.244.0.0/16"
NODE, CLIENT, STRANGER = "198.51.100.1", "198.51.100.2", "198.51.100.3"

NFTABLES_MODE = f"""
table ip kube-proxy {{
    map service-ips {{
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = {{ {VIP} . tcp . 80 : goto service-ULMVA6XW-ns1/svc1/tcp/p80 }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        elements = {{ tcp . {NODE_PORT} : goto external-ULMVA6XW-ns1/svc1/tcp/p80 }}
    }}
    set nodeport-ips {{ type ipv4_addr; elements = {{ {NODE} }} }}
    chain mark-for-masquerade {{ mark set mark or 0x4000; }}
    chain masquerading {{
        mark and 0x4000 == 0 return
        mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain endpoint-5OJB2KTY-ns1/svc1/tcp/p80__{B}/8000 {{
        ip saddr {B} jump mark-for-masquerade
        meta l4proto tcp dnat to {B}:8000
    }}
    chain service-ULMVA6XW-ns1/svc1/tcp/p80 {{
        ip daddr {VIP} tcp dport 80 ip saddr != {PODS} jump mark-for-masquerade
        numgen random mod 1 vmap {{ 0 : goto endpoint-5OJB2KTY-ns1/svc1/tcp/p80__{B}/8000 }}
    }}
    chain external-ULMVA6XW-ns1/svc1/tcp/p80 {{
        EXTERNAL
    }}
    chain services {{
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"""
CLUSTER = (
    "jump mark-for-masquerade\n        goto service-ULMVA6XW-ns1/svc1/tcp/p80",
    "jump KUBE-MARK-MASQ\n        jump KUBE-SVC-ULMVA6XW",
)
# externalTrafficPolicy: Local, the endpoint on this node.
LOCAL = (
    (
        f"ip saddr {PODS} goto service-ULMVA6XW-ns1/svc1/tcp/p80\n"
        "        fib saddr type local jump mark-for-masquerade\n"
        "        numgen random mod 1 vmap "
        f"{{ 0 : goto endpoint-5OJB2KTY-ns1/svc1/tcp/p80__{B}/8000 }}"
    ),
    (
        f"ip saddr {PODS} jump KUBE-SVC-ULMVA6XW\n"
        "        fib saddr type local jump KUBE-MARK-MASQ\n"
        "        jump KUBE-SEP-5OJB2KTY"
    ),
)
# As iptables-nft holds it, with nft's own expressions in place of those of xtables.
IPTABLES_MODE = f"""
table ip nat {{
    chain KUBE-MARK-MASQ {{ meta mark set mark or 0x4000; }}
    chain KUBE-POSTROUTING {{
        mark and 0x4000 != 0x4000 return
        meta mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain KUBE-SEP-5OJB2KTY {{
        ip saddr {B} jump KUBE-MARK-MASQ
        meta l4proto tcp dnat to {B}:8000
    }}
    chain KUBE-SVC-ULMVA6XW {{
        ip saddr != {PODS} ip daddr {VIP} tcp dport 80 jump KUBE-MARK-MASQ
        jump KUBE-SEP-5OJB2KTY
    }}
    chain KUBE-EXT-ULMVA6XW {{
        EXTERNAL
    }}
    chain KUBE-NODEPORTS {{ tcp dport {NODE_PORT} jump KUBE-EXT-ULMVA6XW; }}
    chain KUBE-SERVICES {{
        ip daddr {VIP} tcp dport 80 jump KUBE-SVC-ULMVA6XW
        fib daddr type local jump KUBE-NODEPORTS
    }}
    chain PREROUTING {{ type nat hook prerouting priority dstnat; jump KUBE-SERVICES; }}
    chain OUTPUT {{ type nat hook output priority -100; jump KUBE-SERVICES; }}
    chain POSTROUTING {{ type nat hook postrouting priority srcnat; jump KUBE-POSTROUTING; }}
}}
"""


@pytest.fixture(scope="module")
def outside(node: Node, make_module_netns: MakeNetns) -> Netns:
    found = make_module_netns()
    veth(node.netns, "up0", found, "eth0")
    node.netns.ip("addr", "add", f"{NODE}/24", "dev", "up0")
    for address in (CLIENT, STRANGER):
        found.ip("addr", "add", f"{address}/24", "dev", "eth0")
    found.ip("route", "add", "default", "via", NODE)
    node.netns.ip("route", "add", "default", "via", CLIENT)
    return found


@pytest.fixture(
    params=[
        pytest.param((NFTABLES_MODE, CLUSTER[0]), id="nftables"),
        pytest.param((NFTABLES_MODE, LOCAL[0]), id="nftables, Local"),
        pytest.param((IPTABLES_MODE, CLUSTER[1]), id="iptables"),
        pytest.param((IPTABLES_MODE, LOCAL[1]), id="iptables, Local"),
    ]
)
def service(node: Node, request: pytest.FixtureRequest) -> Iterator[None]:
    rules, external = request.param
    text = rules.replace("EXTERNAL", external)
    node.netns.nft("-f", "-", stdin=text)
    yield
    node.netns.nft("delete", "table", *text.split()[1:3])


def reaches(node: Node, source: Netns, address: str, port: int, own: str = "") -> bool:
    """Return whether a connection comes about with the endpoint; it does, or is refused."""
    before = node.refused()
    with (
        node.pods["b"].socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        source.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((B, 8000))
        server.listen(1)
        if own:
            client.bind((own, 0))
        client.settimeout(0.4)  # a second SYN would come after a second
        try:
            client.connect((address, port))
        except TimeoutError:
            assert node.refused() > before
            return False
        return True


def enforce(node: Node, *policies: NetworkPolicy) -> None:
    table = guarded(compile_policies(world(*policies), "n1"))
    node.netns.nft("-f", "-", stdin=table.transaction)


def test_egress_by_selector_means_the_pod_behind_a_service(
    node: Node, outside: Netns, service: None
) -> None:
    to_b = Rule((PodPeer(app("b")),), (PortMatch(port=8000),))
    to_c = Rule((PodPeer(app("c")),))
    enforce(
        node,
        NetworkPolicy("x", "a", app("a"), egress=(to_b,)),
        NetworkPolicy("x", "c", app("c"), egress=(to_c,)),
    )
    for target in ((VIP, 80), (NODE, NODE_PORT)):
        assert reaches(node, node.pods["a"], *target)
        assert not reaches(node, node.pods["c"], *target)


def test_ingress_sees_who_asked_a_service(node: Node, outside: Netns, service: None) -> None:
    enforce(node, NetworkPolicy("x", "b", app("b"), ingress=(Rule((PodPeer(app("a")),)),)))
    assert reaches(node, node.pods["a"], VIP, 80)
    assert not reaches(node, node.pods["c"], VIP, 80)
    assert not reaches(node, outside, NODE, NODE_PORT)
    assert reaches(node, node.netns, VIP, 80), "the node reaches its pods"


def test_a_node_port_is_judged_by_the_clients_address_where_the_pod_is(
    node: Node, outside: Netns, service: None
) -> None:
    """Its source is hidden, if at all, after the table was asked."""
    block = BlockPeer(ip_network(f"{CLIENT}/32"))
    enforce(node, NetworkPolicy("x", "b", app("b"), ingress=(Rule((block,)),)))
    assert reaches(node, outside, NODE, NODE_PORT, CLIENT)
    assert not reaches(node, outside, NODE, NODE_PORT, STRANGER)


def test_a_pod_reaches_itself_through_its_service(
    node: Node, outside: Netns, service: None
) -> None:
    enforce(node, NetworkPolicy("x", "b", app("b"), (), ()))
    assert reaches(node, node.pods["b"], VIP, 80)
    for name, address in (("a", A), ("c", C)):
        assert not reaches(node, node.pods[name], VIP, 80), address
