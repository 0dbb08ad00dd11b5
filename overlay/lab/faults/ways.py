"""Faults in the way of a packet that ``overlayctl explain`` names, each with its mend."""

from typing import Final

from overlay.lab.fabric import Lab
from overlay.lab.faults.fault import PARTNER, SUBJECT, Fault
from overlay.model.address import Family

WAY: Final = "explain {pod1} {pod2}"

WAYS: Final[tuple[Fault, ...]] = (
    Fault(
        "wrong FDB entry",
        ("bridge fdb replace {mac2} dev overlay.1 dst 192.0.2.99 self permanent",),
        "n2 is at {public2}, as its lease says",
        asked=WAY,
    ),
    Fault(
        "missing FDB entry",
        ("bridge fdb del {mac2} dev overlay.1",),
        "there is no forwarding entry for {mac2}",
        asked=WAY,
    ),
    Fault(
        "missing neighbor",
        ("ip neigh del {gateway2} dev overlay.1",),
        "there is no neighbor entry for {gateway2}",
        asked=WAY,
    ),
    Fault(
        "neighbor with another's MAC",
        ("ip neigh replace {gateway2} lladdr 02:00:00:00:00:77 dev overlay.1 nud permanent",),
        "n2 has the MAC address {mac2}, as its lease says",
        asked=WAY,
    ),
    Fault(
        "route deleted",
        ("ip route del {net2}",),
        "the route to {net2} of n2 is gone",
        asked=WAY,
    ),
    Fault(
        "longer route of somebody else",
        ("ip route add {pod2}/32 dev eth0",),
        "{pod2}/32 dev eth0 goes before the route to {net2}",
        undo=("ip route flush {pod2}/32",),
        asked=WAY,
    ),
    Fault(
        "route to nowhere of somebody else",
        ("ip route add blackhole {pod2}/32",),
        "blackhole {pod2}/32 goes before the route to {net2}",
        undo=("ip route flush {pod2}/32",),
        asked=WAY,
    ),
    Fault(
        "rule of somebody else",
        (
            "ip route add default dev eth0 table 100",
            "ip rule add from {pod1} lookup 100 priority 100",
        ),
        "rule 100 leads it to table 100 before the route to {net2} is looked at",
        undo=("ip route flush table 100", "sh -c 'ip rule del priority 100 2>/dev/null || :'"),
        asked=WAY,
    ),
    Fault(
        "rule that forbids",
        ("ip rule add from {pod1} prohibit priority 100",),
        "rule 100 forbids it before the route to {net2} is looked at",
        undo=("sh -c 'ip rule del priority 100 2>/dev/null || :'",),
        asked=WAY,
    ),
    Fault(
        "MAC address of the device changed",
        ("ip link set overlay.1 address 02:00:00:00:00:55",),
        "overlay.1 has MAC address 02:00:00:00:00:55, its lease says",
        asked=WAY,
    ),
    Fault(
        "FORWARD drop",
        ("iptables -P FORWARD DROP",),
        "the policy of ip filter FORWARD drops it",
        undo=("iptables -P FORWARD ACCEPT",),
        asked=WAY,
    ),
    Fault(
        "a rule of iptables-legacy",
        ("iptables-legacy -I FORWARD -d {pod2} -j DROP",),
        "iptables-legacy FORWARD drops it",
        undo=("sh -c 'iptables-legacy -D FORWARD -d {pod2} -j DROP 2>/dev/null || :'",),
        asked=WAY,
    ),
    Fault(
        "MTU one byte too large",
        # The kernel refuses a device that is too large from the start.
        ("ip link set eth0 mtu 1499",),
        "packets of 1450 bytes do not fit the underlay",
        undo=("ip link set eth0 mtu 1500",),
        asked=WAY,
    ),
    Fault(
        "tunnel port blocked by a firewall of the node",
        (
            "nft add table inet fw",
            "nft add chain inet fw out {{ type filter hook output priority 0 ; }}",
            "nft add rule inet fw out udp dport 8472 counter drop",
        ),
        "inet fw out drops it",
        undo=("nft delete table inet fw",),
        asked=WAY,
    ),
    Fault(
        "tunnel port blocked in the underlay",
        (
            "nft add table bridge fw",
            "nft add chain bridge fw pass {{ type filter hook forward priority 0 ; }}",
            "nft add rule bridge fw pass udp dport 8472 counter drop",
        ),
        "it left by eth0, and no answer came: lost in the underlay or on n2",
        asked="explain {pod1} {pod2} --live",
        undo=("nft delete table bridge fw",),
        where="underlay",
    ),
    Fault(
        "stale peer, whose lease is gone",
        ("ip route add {stale} via {stale_gateway} dev overlay.1 onlink proto 79",),
        "stale: no node holds a lease for {stale} any more",
        asked="explain {pod1} {stale_gateway}",
    ),
    Fault(
        "device down",
        ("ip link set overlay.1 down",),
        "overlay.1 is down, and its routes went with it",
        asked=WAY,
    ),
    Fault(
        "rule for nodes gone",
        ("ip rule del priority 20310",),
        "the rule for what pods send to nodes is gone",
        asked="explain {pod1} {public2}",
    ),
    Fault(
        "peer missing in the set of nodes",
        ("nft delete element inet overlay ov_nodes4 {{ {public2} }}",),
        "inet overlay ov_input drops it",
        asked=WAY,
    ),
    Fault(
        "peer on another VNI",
        (
            "ip link del overlay.1",
            "ip link add overlay.1 type vxlan id 7 dstport 8472 local {public1} dev eth0",
            "ip link set overlay.1 alias overlay-fabric up",
        ),
        "n2 listens on VNI 1, as its lease says, overlay.1 on 7",
        asked=WAY,
    ),
    Fault(
        "pod's default route gone",
        ("nsenter --net={sandbox1} ip route del default",),
        "the pod has no route to {pod2}",
        undo=("nsenter --net={sandbox1} ip route replace default via 169.254.1.1 dev eth0 onlink",),
        asked=WAY,
    ),
    Fault(
        "host's end of the pod's link down",
        ("ip link set {link1} down",),
        "the host's end {link1} is down",
        undo=("ip link set {link1} up", "ip route replace {pod1}/32 dev {link1} proto 80"),
        asked=WAY,
    ),
    Fault(
        "forwarding switched off",
        ("sysctl -qw net.ipv4.ip_forward=0",),
        "this node does not forward packets",
        asked=WAY,
    ),
    Fault(
        "forwarding switched off for the pod's link",
        ("sysctl -qw net/ipv4/conf/{link1}/forwarding=0",),
        "this node does not forward what comes in by {link1}",
        undo=("sysctl -qw net/ipv4/conf/{link1}/forwarding=1",),
        asked=WAY,
    ),
    Fault(
        "forwarding switched off for the tunnel's device",
        ("sysctl -qw net/ipv4/conf/overlay.1/forwarding=0",),
        "this node does not forward what comes in by overlay.1",
        undo=("sysctl -qw net/ipv4/conf/overlay.1/forwarding=1",),
        asked=WAY,
    ),
    Fault(
        "a firewall on the other node",
        (
            "nft add table inet fw",
            "nft add chain inet fw pass {{ type filter hook forward priority 0 ; }}",
            "nft add rule inet fw pass ip daddr {pod2} counter drop",
        ),
        "a rule of the host, which is not the fabric's, stops it",
        undo=("nft delete table inet fw",),
        where=PARTNER,
        asked=WAY,
    ),
    Fault(
        "the other node's pod has lost its address",
        ("nsenter --net={sandbox2} ip addr del {pod2}/32 dev eth0",),
        "n2 pod interface: the pod has lost its address",
        undo=(
            "nsenter --net={sandbox2} ip addr replace {pod2}/32 dev eth0",
            "nsenter --net={sandbox2} ip route replace default via 169.254.1.1 dev eth0 onlink",
        ),
        where=PARTNER,
        asked=WAY,
    ),
)


def pod_names(lab: Lab) -> dict[str, str]:
    """Return what the braces for pods stand for in this lab. Raises LabError."""
    first = {pod.node: pod for pod in reversed(lab.pods())}
    here, there = first[SUBJECT], first[PARTNER]
    return {
        "pod1": str(here.addresses[Family.IPV4]),
        "pod2": str(there.addresses[Family.IPV4]),
        # Of a lab with both families.
        **{
            f"{name}_6": str(pod.addresses[Family.IPV6])
            for name, pod in (("pod1", here), ("pod2", there))
            if Family.IPV6 in pod.addresses
        },
        "link1": here.host_link,
        "sandbox1": f"/run/netns/{here.namespace}",
        "sandbox2": f"/run/netns/{there.namespace}",
    }
