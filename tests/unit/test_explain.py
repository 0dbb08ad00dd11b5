"""What an operator reads of a packet's way, fact by fact: the step that breaks, and its mend."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from overlay.model.address import Family
from overlay.policy.listing import ListedChain
from overlay.policy.verdict import Packet, Verdict
from overlay.trace.explain import explain
from overlay.trace.facts import FarHalf, Hop, Leg, NeighborFact, Observed, RouteFact, RuleFact
from overlay.trace.steps import Step
from tests.unit import ways
from tests.unit.ways import (
    ETH0,
    FAR,
    FOREIGN,
    FORWARD,
    GATEWAY,
    INSIDE,
    MAC,
    MASQUERADE,
    N1,
    N2,
    OVERLAY,
    POD,
    SUBNET,
    THERE,
    VETH,
    answer,
    leg,
    observed,
    party,
    rule,
    with_pod,
    with_route,
    with_tunnel,
)

WHOLE = """\
pod interface: pod default/web eth0 10.244.1.2 in /run/netns/web, behind opod1 [mtu 1450]
pod route: default via 169.254.1.1 dev eth0 [mtu 1450]
pod neighbor: 169.254.1.1 lladdr 02:00:00:00:02:01 permanent
node route: 10.244.2.0/24 via 10.244.2.0 dev overlay.1 [mtu 1450]
node policy: inet overlay ov_forward lets it through
node nat: 10.244.1.2 stays as it is
node tunnel: overlay.1 VNI 1 port 8472 local 192.0.2.1 [mtu 1450]
node neighbor: 10.244.2.0 lladdr 02:00:00:00:00:02 permanent dev overlay.1
node fdb: 02:00:00:00:00:02 dev overlay.1 dst 192.0.2.2
underlay outside: 192.0.2.1 -> 192.0.2.2 udp 8472 VNI 1
underlay interface: eth0 [mtu 1500]
underlay neighbor: 192.0.2.2 lladdr 02:00:00:00:01:02 reachable dev eth0
underlay mtu: eth0 1500 - 50 of VXLAN = 1450; overlay.1 takes 1450 [mtu 1450]
assumed: node n2 delivery: n2 unpacks VNI 1 and hands it to 10.244.2.2, as its lease says
answer, node tunnel: overlay.1 VNI 1 unpacks it [mtu 1450]
answer, node route: 10.244.1.2/32 dev opod1 [mtu 1450]
answer, pod interface: pod default/web eth0 10.244.1.2 in /run/netns/web, behind opod1 [mtu 1450]
answer, pod delivery: pod default/web has 10.244.1.2 on eth0"""


def test_whole_way_reads_from_pod_to_pod_and_back() -> None:
    way = explain(observed(back=answer()))
    assert str(way) == WHOLE
    assert way.broken is None
    assert way.mtu == 1450


LONGER = ip_network("10.244.2.2/32")
RULE = RuleFact(100, "lookup", 7, ip_network("10.244.1.0/24"))
REFUSED = RouteFact("refused", error="no way to the host")
REST = RouteFact("unreachable", ip_network("10.244.0.0/16"), 254, metric=20310, protocol=79)
DEFAULT = RouteFact("unicast", ip_network("0.0.0.0/0"), 254, "eth0", ip_address("192.0.2.254"))
NODE = party(THERE, N2, "node")
TO_NODE = Packet(POD, THERE, iif="opod1")
PEER = Hop(GATEWAY, ways.route(), OVERLAY)
UNREAD = rule({"xt": {"type": "match", "name": "recent"}}, {"drop": None})
FORGED = rule({"drop": None}, comment="a source address, forged")
NO_PEER = rule({"drop": None}, comment="tunnel packets from no peer", handle=23)
OUTSIDE = rule({"reject": {"type": "icmpx"}}, comment="a pod to the outside")

POLICIES = ListedChain(("inet", "overlay_policy", "ov_forward"), "forward", -9)
DENIED = Verdict(POLICIES, "drop", rule({"drop": None}), ("inet", "overlay_policy", "ov_c_1"))
STRANGER = ip_address("10.244.9.9")
FROM_NOBODY = Leg(Packet(STRANGER, POD), "outside")

BROKEN = [
    pytest.param(
        observed(leg(passing=(Verdict(FORWARD, "accept"), DENIED))),
        "node policy: network policies do not allow it\noverlayctl policy list",
        id="a network policy",
    ),
    pytest.param(
        observed(leg(packet=Packet(POD, FAR, "tcp", 40000, 80, "opod1"), passing=(DENIED,))),
        "node policy: network policies do not allow it\n"
        "overlayctl policy test 10.244.1.2 10.244.2.2 --proto tcp --port 80",
        id="a network policy, with a port",
    ),
    pytest.param(
        observed(FROM_NOBODY, source=party(STRANGER, None, "other"), destination=party(POD, N1)),
        "outside arrival: this node has no way to 10.244.9.9: nobody there is answered\n"
        "overlayctl leases show 10.244.9.9",
        id="a source that nobody has",
    ),
    pytest.param(
        observed(with_pod(inside=None, hop=None)),
        "pod interface: the pod has no interface eth0\n"
        "overlayctl ipam release c0ffee  # and recreate the pod",
        id="the pod's interface is gone",
    ),
    pytest.param(
        observed(with_pod(inside=replace(INSIDE, is_up=False))),
        "pod interface: eth0 is down in the pod\nnsenter --net=/run/netns/web ip link set eth0 up",
        id="the pod's interface is down",
    ),
    pytest.param(
        observed(with_pod(has_address=False, hop=None)),
        "pod interface: the pod has lost its address 10.244.1.2\n"
        "nsenter --net=/run/netns/web ip addr add 10.244.1.2/32 dev eth0",
        id="the pod's address is gone",
    ),
    pytest.param(
        observed(with_pod(trouble="/run/netns/web: No such file or directory", inside=None)),
        "pod interface: its namespace cannot be entered: /run/netns/web: No such file or "
        "directory\noverlayctl ipam release c0ffee",
        id="the pod's namespace is gone",
    ),
    pytest.param(
        observed(with_pod(outside=replace(VETH, is_up=False))),
        "pod interface: the host's end opod1 is down, and the route to the pod went with it\n"
        "ip link set opod1 up; ip route replace 10.244.1.2/32 dev opod1 proto 80",
        id="the host's end is down",
    ),
    pytest.param(
        observed(with_pod(hop=Hop(FAR, RouteFact("refused", error="no route")))),
        "pod route: the pod has no route to 10.244.2.2\n"
        "nsenter --net=/run/netns/web ip route replace default via 169.254.1.1 dev eth0 onlink "
        "proto 80",
        id="the pod's default route is gone",
    ),
    pytest.param(
        observed(
            with_pod(
                hop=replace(
                    ways.pod_end().hop,  # type: ignore[type-var]  # it is one
                    neighbor=NeighborFact(ip_address("169.254.1.1"), "stale", MAC),
                )
            )
        ),
        "pod neighbor: that is not the MAC address of the host's end opod1, 02:00:00:00:02:01\n"
        "nsenter --net=/run/netns/web ip neigh replace 169.254.1.1 lladdr 02:00:00:00:02:01 dev "
        "eth0 nud permanent",
        id="the pod's neighbor is another's",
    ),
    pytest.param(
        observed(leg(forwarding_off="net/ipv4/ip_forward")),
        "node forwarding: this node does not forward packets\nsysctl -w net/ipv4/ip_forward=1",
        id="forwarding is off",
    ),
    pytest.param(
        observed(with_route(REFUSED, cover=REST)),
        "node route: the route to 10.244.2.0/24 of n2 is gone\n"
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev overlay.1 onlink proto 79",
        id="the route to the peer is gone",
    ),
    pytest.param(
        observed(with_route(DEFAULT, link=ETH0)),
        "node route: the route to 10.244.2.0/24 of n2 is gone\n"
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev overlay.1 onlink proto 79",
        id="the default route takes it",
    ),
    pytest.param(
        observed(with_route(ways.route(device="eth0", gateway=None), link=ETH0)),
        "node route: the route to 10.244.2.0/24 of n2 leads to eth0\n"
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev overlay.1 onlink proto 79",
        id="the route leads elsewhere",
    ),
    pytest.param(
        observed(with_route(ways.route(prefix=LONGER, device="eth0", protocol=3), link=ETH0)),
        "node route: 10.244.2.2/32 via 10.244.2.0 dev eth0 goes before the route to 10.244.2.0/24\n"
        "ip route del 10.244.2.2/32 via 10.244.2.0 dev eth0",
        id="a longer route of others",
    ),
    pytest.param(
        observed(with_route(REFUSED, cover=RouteFact("blackhole", LONGER, 254, protocol=3))),
        "node route: blackhole 10.244.2.2/32 goes before the route to 10.244.2.0/24\n"
        "ip route del blackhole 10.244.2.2/32",
        id="a route to nowhere",
    ),
    pytest.param(
        observed(with_route(replace(DEFAULT, table=7), link=ETH0, rule=RULE)),
        "node route: rule 100 leads it to table 7 before the route to 10.244.2.0/24 is looked at\n"
        "ip rule del priority 100 from 10.244.1.0/24 lookup 7",
        id="a rule of others",
    ),
    pytest.param(
        observed(leg(forwarding_off="net/ipv4/conf/opod1/forwarding")),
        "node forwarding: this node does not forward what comes in by opod1\n"
        "sysctl -w net/ipv4/conf/opod1/forwarding=1",
        id="one link does not forward",
    ),
    pytest.param(
        observed(own=replace(N1, macs={Family.IPV4: MAC})),
        "node tunnel: overlay.1 has MAC address 02:00:00:00:00:01, its lease says "
        "02:00:00:00:00:02: it drops what others send\n"
        "ip link set overlay.1 address 02:00:00:00:00:02; systemctl restart overlayd",
        id="the device has another MAC address",
    ),
    pytest.param(
        observed(
            answer(),
            source=party(FAR, N2),
            destination=party(POD, N1),
            own=replace(N1, macs={Family.IPV4: MAC}),
        ),
        "node tunnel: overlay.1 has MAC address 02:00:00:00:00:01, its lease says "
        "02:00:00:00:00:02: it drops what others send\n"
        "ip link set overlay.1 address 02:00:00:00:00:02; systemctl restart overlayd",
        id="the device that it comes in by has another MAC address",
    ),
    pytest.param(
        observed(with_route(REFUSED, cover=REST), destination=party(FAR, None, "other")),
        "node route: 10.244.2.2 is of the pod network, and no node holds a lease for it\n"
        "overlayctl leases show 10.244.2.2",
        id="nobody's address",
    ),
    pytest.param(
        observed(leg(), destination=party(FAR, None, "other")),
        "node route: stale: no node holds a lease for 10.244.2.0/24 any more\n"
        "ip route del 10.244.2.0/24 proto 79",
        id="the lease is gone, the route is there",
    ),
    pytest.param(
        observed(
            leg(),
            destination=party(FAR, replace(N2, problem="lease of node n2 speaks host-gw")),
        ),
        "node route: lease of node n2 speaks host-gw\noverlayctl leases show n2",
        id="the agent refuses the lease",
    ),
    pytest.param(
        observed(with_route(REFUSED), tunnels={}),
        "node route: this node has no VXLAN device for it\nsystemctl restart overlayd",
        id="the device is gone",
    ),
    pytest.param(
        observed(with_route(REFUSED), tunnels={Family.IPV4: replace(OVERLAY, is_up=False)}),
        "node route: overlay.1 is down, and its routes went with it\n"
        "ip link set overlay.1 up; systemctl restart overlayd",
        id="the device is down",
    ),
    pytest.param(
        observed(leg(), tunnels={Family.IPV4: replace(OVERLAY, vni=7)}),
        "node route: n2 listens on VNI 1, as its lease says, overlay.1 on 7\n"
        "ip link del overlay.1; systemctl restart overlayd",
        id="another VNI",
    ),
    pytest.param(
        observed(with_route(RouteFact("refused", error="the reverse path filter (rp_filter) ..."))),
        "node route: the reverse path filter (rp_filter) ...: the way back to 10.244.1.2 is not "
        "opod1\nsysctl -w net.ipv4.conf.opod1.rp_filter=0",
        id="the reverse path filter",
    ),
    pytest.param(
        observed(
            leg(packet=TO_NODE, hop=Hop(THERE, DEFAULT, ETH0), peer=PEER, has_rule=False),
            destination=NODE,
        ),
        "node route: the rule for what pods send to nodes is gone: it would leave by eth0 with a "
        "pod's address, which networks drop\n"
        "ip rule add from 10.244.1.0/24 lookup 20310 priority 20310 protocol 79",
        id="the rule is gone",
    ),
    pytest.param(
        observed(leg(packet=TO_NODE, hop=Hop(THERE, DEFAULT, ETH0), peer=PEER), destination=NODE),
        "node route: table 20310 has no route to n2: it would leave by eth0 with a pod's address, "
        "which networks drop\nip route replace 192.0.2.2 via 10.244.2.0 dev overlay.1 onlink "
        "table 20310 proto 79",
        id="the table of nodes lacks one",
    ),
    pytest.param(
        observed(leg(passing=(Verdict(FORWARD, "accept"), Verdict(FOREIGN, "drop")))),
        "node policy: the policy of ip filter FORWARD drops it\n"
        "systemctl restart overlayd  # it lets pods through iptables' FORWARD",
        id="FORWARD drops",
    ),
    pytest.param(
        observed(leg(passing=(Verdict(FOREIGN, "drop", rule({"drop": None}), FOREIGN.place),))),
        "node policy: ip filter FORWARD drops it\nnft delete rule ip filter FORWARD handle 7",
        id="somebody's rule drops",
    ),
    pytest.param(
        observed(
            leg(prerouting=(Verdict(FORWARD, "drop", FORGED, ("inet", "overlay", "ov_source")),))
        ),
        "node source check: inet overlay ov_forward drops it\n"
        "ip route replace 10.244.1.2/32 dev opod1 proto 80",
        id="the source is not routed to its link",
    ),
    pytest.param(
        observed(
            leg(passing=(Verdict(FORWARD, "reject", OUTSIDE, ("inet", "overlay", "x")),)),
            destination=party(ip_address("198.51.100.1"), None, "other"),
            tunnels={},
            knows_leases=False,
        ),
        "node policy: inet overlay ov_forward rejects it\n"
        "overlayctl network show -o json | jq '.Egress.Mode = \"island\"' "
        "| overlayctl network init -",
        id="isolated",
    ),
    pytest.param(
        observed(
            leg(
                postrouting=(
                    Verdict(MASQUERADE, "masquerade", rule({"masquerade": None}), ("a", "b", "c")),
                )
            )
        ),
        "node nat: 10.244.1.2 is rewritten on the way to a pod of the fabric\n"
        "nft add element inet overlay ov_pods4 '{ 10.244.2.0/24 }'",
        id="masqueraded inside the fabric",
    ),
    pytest.param(
        observed(with_tunnel(link=replace(OVERLAY, is_up=False))),
        "node tunnel: overlay.1 is down\nip link set overlay.1 up",
        id="the tunnel of the route is down",
    ),
    pytest.param(
        observed(leg(hop=Hop(FAR, ways.route(), OVERLAY, NeighborFact(GATEWAY)))),
        "node neighbor: there is no neighbor entry for 10.244.2.0, and nobody answers for it\n"
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev overlay.1 nud permanent",
        id="no neighbor",
    ),
    pytest.param(
        observed(
            leg(hop=Hop(FAR, ways.route(), OVERLAY, NeighborFact(GATEWAY, "permanent", VETH.mac)))
        ),
        "node neighbor: n2 has the MAC address 02:00:00:00:00:02, as its lease says\n"
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev overlay.1 nud permanent",
        id="another's MAC address",
    ),
    pytest.param(
        observed(with_tunnel(destinations=(), outer=None)),
        "node fdb: there is no forwarding entry for 02:00:00:00:00:02\n"
        "bridge fdb replace 02:00:00:00:00:02 dev overlay.1 dst 192.0.2.2 self permanent",
        id="no forwarding entry",
    ),
    pytest.param(
        observed(with_tunnel(destinations=(ip_address("192.0.2.9"),))),
        "node fdb: n2 is at 192.0.2.2, as its lease says\n"
        "bridge fdb replace 02:00:00:00:00:02 dev overlay.1 dst 192.0.2.2 self permanent",
        id="a forwarding entry to elsewhere",
    ),
    pytest.param(
        observed(with_tunnel(destinations=(THERE, ip_address("192.0.2.9")))),
        "node fdb: n2 is at 192.0.2.2, as its lease says\n"
        "bridge fdb replace 02:00:00:00:00:02 dev overlay.1 dst 192.0.2.2 self permanent",
        id="two destinations of one MAC",
    ),
    pytest.param(
        observed(with_tunnel(hop=Hop(THERE, REFUSED), lower=replace(ETH0, is_up=False))),
        "underlay route: the underlay eth0 is down\nip link set eth0 up",
        id="the underlay is down",
    ),
    pytest.param(
        observed(with_tunnel(hop=Hop(THERE, REFUSED))),
        "underlay route: this node has no way to 192.0.2.2\n"
        "ip route show table all  # add one to 192.0.2.2",
        id="no way to the node",
    ),
    pytest.param(
        observed(with_tunnel(hop=Hop(THERE, ways.route(prefix=ip_network("192.0.2.2/32"))))),
        "underlay route: the tunnel's own packets would go into the tunnel\n"
        "ip route del 192.0.2.2/32 dev overlay.1",
        id="the tunnel in itself",
    ),
    pytest.param(
        observed(with_tunnel(hop=replace(ways.outer_hop(), link=replace(ETH0, has_carrier=False)))),
        "underlay interface: eth0 has no carrier\n"
        "ip link show eth0  # look at its cable, or its other end",
        id="no carrier",
    ),
    pytest.param(
        observed(
            with_tunnel(hop=replace(ways.outer_hop(), neighbor=NeighborFact(THERE, "failed")))
        ),
        "underlay neighbor: 192.0.2.2 did not answer on eth0\n"
        "ip neigh flush dev eth0 to 192.0.2.2  # is that host up, and on this network?",
        id="the node does not answer",
    ),
    pytest.param(
        observed(
            with_tunnel(output=(Verdict(replace(FOREIGN, place=("inet", "fw", "out")), "drop"),))
        ),
        "node underlay policy: the policy of inet fw out drops it\n"
        "nft insert rule inet fw out udp dport 8472 accept",
        id="the tunnel's port is blocked",
    ),
    pytest.param(
        observed(with_tunnel(link=replace(OVERLAY, mtu=1451))),
        "underlay mtu: packets of 1451 bytes do not fit the underlay\n"
        "ip link set overlay.1 mtu 1450",
        id="one byte too large",
    ),
    pytest.param(
        observed(
            with_tunnel(
                hop=replace(ways.outer_hop(), route=replace(ways.outer_hop().route, mtu=1400))
            )
        ),
        "underlay mtu: packets of 1351 to 1450 bytes do not fit the underlay\n"
        "ip link set overlay.1 mtu 1350",
        id="a smaller path MTU was learned",
    ),
    pytest.param(
        observed(
            back=answer(
                arrival=replace(
                    answer().arrival,  # type: ignore[type-var]  # it is one
                    verdicts=(Verdict(FORWARD, "drop", NO_PEER, ("inet", "overlay", "ov_tunnel")),),
                    outer=Packet(THERE, POD, "udp", port=8472, vni=1),
                )
            )
        ),
        "answer, node tunnel policy: inet overlay ov_forward drops it\n"
        "nft add element inet overlay ov_nodes4 '{ 192.0.2.2 }'",
        id="the peer is missing in the set of nodes",
    ),
    pytest.param(
        observed(back=answer(hop=Hop(POD, DEFAULT, ETH0))),
        "answer, node route: the route to pod default/web is gone\n"
        "ip route replace 10.244.1.2/32 dev opod1 proto 80",
        id="the route to the pod is gone",
    ),
    pytest.param(
        observed(
            back=answer(
                hop=Hop(POD, ways.route(device="opod1"), VETH, NeighborFact(POD, "stale", MAC))
            )
        ),
        "answer, node neighbor: pod default/web has the MAC address 02:00:00:00:02:02\n"
        "ip neigh del 10.244.1.2 dev opod1",
        id="the host knows another MAC of the pod",
    ),
    pytest.param(
        observed(has_table=False),
        "node policy: the fabric's rules are gone: nothing is masqueraded, and anybody may send\n"
        "systemctl restart overlayd",
        id="the table is gone",
    ),
]


@pytest.mark.parametrize(("seen", "expected"), BROKEN)
def test_step_that_breaks_is_named_with_its_mend(seen: Observed, expected: str) -> None:
    broken = explain(seen).broken
    assert broken is not None
    assert f"{broken.place} {broken.name}: {broken.fault}\n{broken.mend}" == expected


def test_steps_behind_the_break_are_left_out() -> None:
    way = explain(observed(with_tunnel(destinations=())))
    assert way.steps[-1].state == "broken"
    assert [s.name for s in way.steps][-1] == "fdb"


def test_rule_that_cannot_be_read_is_told_and_breaks_nothing() -> None:
    seen = Verdict(replace(FOREIGN, policy="accept"), "accept", unread=(UNREAD,))
    way = explain(observed(leg(passing=(seen,))))
    assert way.broken is None
    (note,) = (step for step in way.steps if step.state == "note")
    assert str(note) == (
        "note: node policy: ip filter FORWARD (policy accept) may also decide: "
        "`xt recent drop` (handle 7) cannot be judged from outside"
    )


def test_far_node_that_was_asked_is_not_assumed() -> None:
    far = (Step("node n2", "tunnel", "overlay.1 VNI 1 unpacks it"),)
    way = explain(observed(far=FarHalf(there=far)))
    assert "assumed" not in str(way)
    assert str(way).splitlines()[-1] == "node n2 tunnel: overlay.1 VNI 1 unpacks it"


def test_far_node_that_breaks_it_is_named() -> None:
    far = (Step("node n2", "route", "x", "broken", fault="gone", mend="ip route add"),)
    broken = explain(observed(far=FarHalf(there=far), back=answer())).broken
    assert broken is not None
    assert broken.place == "node n2"


def test_without_leases_nothing_is_expected_of_peers() -> None:
    """Neither agent nor store answers: what the kernel does is shown, and not judged."""
    way = explain(
        observed(leg(), destination=party(FAR, None, "other"), own=None, knows_leases=False)
    )
    assert way.broken is None


def test_peer_on_the_same_layer_2_is_reached_directly() -> None:
    direct = RouteFact("unicast", SUBNET, 254, "eth0", THERE, protocol=79)
    way = explain(observed(with_route(direct, link=ETH0, neighbor=NeighborFact(THERE))))
    assert way.broken is None
    assert str(way.steps[-1]) == (
        "assumed: underlay delivery: n2 hands it to 10.244.2.2, as its lease says"
    )


def test_document_has_all_that_the_line_says() -> None:
    broken = explain(observed(with_tunnel(destinations=()))).broken
    assert broken is not None
    assert broken.to_json() == {
        "place": "node",
        "step": "fdb",
        "state": "broken",
        "text": "02:00:00:00:00:02 dev overlay.1 dst nowhere",
        "mtu": None,
        "fault": "there is no forwarding entry for 02:00:00:00:00:02",
        "mend": "bridge fdb replace 02:00:00:00:00:02 dev overlay.1 dst 192.0.2.2 self permanent",
    }
