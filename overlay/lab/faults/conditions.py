"""Faults that ``overlayctl doctor`` names.

The first ones are what flannel does not survive (docs/reliability.md has the
same ones with the times of their repair), the others what hosts do to it.
"""

from typing import Final

from overlay.lab.faults.fault import EVENTS, SUBNETS, Fault

_LEASE: Final = (
    '{{"PublicIP":"%s","BackendType":"vxlan",'
    '"BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}}}'
)
_AWAY: Final = "172.16.0.77"
_MAC: Final = "02:00:00:00:00:77"
_STALE: Final = f"{SUBNETS}/{{stale_key}}"
# A peer that the agent has learned of before it is killed, frozen or cut off.
_BEFORE: Final = (f"etcd put {_STALE} {_LEASE % _AWAY}",)
_LEARNED: Final = f"with {{stale}} at {_AWAY} came"
_CUT: Final = (
    "nft add table inet cut",
    "nft add chain inet cut o {{ type filter hook output priority 0 ; }}",
    "nft add rule inet cut o tcp dport 2379 drop",
)
_HEALED: Final = "nft delete table inet cut"

BASELINE: Final = (
    Fault("peer's route deleted", ("ip route del {net2}",), "set route {net2}"),
    Fault("neighbor deleted", ("ip neigh del {gateway2} dev overlay.1",), "set neigh {gateway2}"),
    Fault("FDB entry deleted", ("bridge fdb del {mac2} dev overlay.1",), "set fdb {mac2}"),
    Fault(
        "FDB entry changed",
        ("bridge fdb replace {mac2} dev overlay.1 dst 192.0.2.99 self permanent",),
        "set fdb {mac2} dev overlay.1 dst {public2}",
    ),
    Fault("device set down", ("ip link set overlay.1 down",), "overlay.1 is down"),
    Fault(
        "device's address removed",
        ("ip addr del {gateway1}/32 dev overlay.1",),
        "set addr {gateway1}/32",
    ),
    Fault("device deleted", ("ip link del overlay.1",), "the tunnel's device is gone"),
    Fault("nft flush ruleset", ("nft flush ruleset",), "table inet overlay is gone"),
    Fault(
        "peer deleted while the agent was down",
        (f"etcd del {_STALE}",),
        "del route {stale}",
        before=_BEFORE,
        learned=_LEARNED,
    ),
    Fault(
        "peer changed while the agent was down",
        (f"etcd put {_STALE} {_LEASE.replace(_MAC, '02:00:00:00:00:78') % _AWAY}",),
        "set neigh {stale_gateway} lladdr 02:00:00:00:00:78",
        undo=(f"etcd del {_STALE}",),
        before=_BEFORE,
        learned=_LEARNED,
    ),
    Fault(
        "an entry that is to be removed is gone already",
        (
            "agent freeze",
            f"bridge fdb del {_MAC} dev overlay.1",
            "ip neigh del {stale_gateway} dev overlay.1",
            "ip route del {stale}",
            f"etcd del {_STALE}",
            "agent thaw",
        ),
        f"with {{stale}} at {_AWAY} went",
        asked=EVENTS,
        is_agent_away=False,
        before=_BEFORE,
        learned=_LEARNED,
        heals=True,
    ),
    Fault(
        "etcd down",
        ("etcd stop",),
        "nothing new is learned and leases run out",
        undo=("etcd start",),
        is_agent_away=False,
    ),
    Fault(
        "cut off from etcd",
        _CUT,
        "nothing new is learned and leases run out",
        undo=(_HEALED,),
        is_agent_away=False,
    ),
    Fault(
        "cut off, etcd restarted and compacted, then healed",
        (*_CUT, f"etcd del {_STALE}", "etcd compact", "etcd stop", "etcd start", _HEALED),
        f"with {{stale}} at {_AWAY} went",
        asked=EVENTS,
        is_agent_away=False,
        before=_BEFORE,
        learned=_LEARNED,
        heals=True,
    ),
    Fault("own lease deleted", (f"etcd del {SUBNETS}/{{key1}}",), "no lease is this node's"),
    Fault("own lease expired", (f"etcd end {SUBNETS}/{{key1}}",), "no lease is this node's"),
    Fault(
        "three agents race for their subnets",
        ("etcd del {keys}",),
        "leased {net1}",
        asked=EVENTS,
        is_agent_away=False,
        heals=True,
    ),
    Fault(
        "subnet claimed by another node",
        (f"etcd put {SUBNETS}/{{key1}} {_LEASE % _AWAY}",),
        "no lease is this node's",
        undo=(f"etcd del {SUBNETS}/{{key1}}",),
    ),
    Fault(
        "malformed key under the prefix",
        (f"etcd put {SUBNETS}/{{stale_key}} x",),
        "/coreos.com/network/subnets/{stale_key} cannot be read",
        undo=(f"etcd del {SUBNETS}/{{stale_key}}",),
        is_agent_away=False,
    ),
    Fault(
        "two nodes with one public address",
        (f"etcd put {SUBNETS}/{{stale_key}} {_LEASE % '{public2}'}",),
        "2 leases have public address {public2}",
        undo=(f"etcd del {SUBNETS}/{{stale_key}}",),
        is_agent_away=False,
    ),
)

# It leaves the node with another subnet than all faults before it know.
LAST: Final = Fault(
    "cut off, subnet claimed by another node, compaction, then healed",
    (*_CUT, f"etcd put {SUBNETS}/{{key1}} {_LEASE % _AWAY}", "etcd compact", _HEALED),
    "{net1} is no longer this node's",
    asked=EVENTS,
    is_agent_away=False,
    heals=True,
)

HOST: Final = (
    Fault("agent dead", (), "the agent does not answer, so nothing is repaired or learned"),
    Fault(
        "FORWARD policy DROP",
        ("iptables -P FORWARD DROP",),
        "FORWARD drops what pods send",
        undo=("iptables -P FORWARD ACCEPT",),
    ),
    Fault(
        "tunnel's port closed by a firewall of the node",
        ("iptables -A INPUT -p udp --dport 8472 -j DROP",),
        "drops what peers send to UDP 8472",
        undo=("iptables -D INPUT -p udp --dport 8472 -j DROP",),
        is_agent_away=False,
    ),
    Fault(
        "firewalld without a zone for pods",
        (
            "nft add table inet firewalld",
            (
                "nft add chain inet firewalld filter_FORWARD "
                "{{ type filter hook forward priority 10 ; }}"
            ),
            "nft add rule inet firewalld filter_FORWARD ct state established,related accept",
            "nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
        ),
        "firewalld rejects what comes out of overlay.1 for pods",
        undo=("nft delete table inet firewalld",),
        is_agent_away=False,
    ),
    Fault(
        "MTU one byte too large",
        # The kernel refuses a device that is too large from the start.
        ("ip link set eth0 mtu 1499",),
        "1500 with its headers, but eth0 carries 1499",
        undo=("ip link set eth0 mtu 1500",),
    ),
    Fault(
        "underlay swallows large packets",
        ("ip link set {partner} mtu 1400",),
        "do not reach {public2}; 1400 do",
        undo=("ip link set {partner} mtu 1500",),
        where="underlay",
        is_agent_away=False,
    ),
    Fault(
        "forwarding switched off",
        ("sysctl -qw net.ipv4.ip_forward=0",),
        "net/ipv4/ip_forward = 0",
    ),
    Fault(
        "forwarding switched off for a pod's link",
        ("sysctl -qw net/ipv4/conf/{link1}/forwarding=0",),
        "net/ipv4/conf/{link1}/forwarding = 0: what comes in there is dropped",
        undo=("sysctl -qw net/ipv4/conf/{link1}/forwarding=1",),
    ),
    Fault(
        "strict rp_filter, and the rule for nodes gone",
        ("sysctl -qw net/ipv4/conf/overlay.1/rp_filter=1", "ip rule del priority 20310"),
        "overlay.1 filters strictly (rp_filter = 1)",
        undo=("sysctl -qw net/ipv4/conf/overlay.1/rp_filter=0",),
    ),
    Fault(
        "MAC address changed by udev",
        ("ip link set overlay.1 address 02:00:00:00:00:55",),
        "overlay.1 has MAC address 02:00:00:00:00:55, its lease has",
    ),
    Fault(
        "pods on a bridge that the firewall does not see",
        (
            "ip link add cni0 type bridge",
            "ip addr add {inner1}/24 dev cni0",
            "sysctl -qw net/bridge/bridge-nf-call-iptables=0",
        ),
        "a Service that leads back to its bridge hangs",
        undo=("ip link del cni0", "sysctl -qw net/bridge/bridge-nf-call-iptables=1"),
        is_agent_away=False,
    ),
    Fault(
        "flannel's device left",
        ("ip link add flannel.1 type vxlan id 2 dstport 8472 local {public1} nolearning",),
        "flannel.1 is left of flannel",
        undo=("ip link del flannel.1",),
        is_agent_away=False,
    ),
    Fault(
        "flannel's bridge left, with an old subnet",
        ("ip link add cni0 type bridge", "ip addr add {stale_inner}/24 dev cni0"),
        "cni0 has an address outside this node's subnet",
        undo=("ip link del cni0",),
        is_agent_away=False,
    ),
    Fault(
        "another network's CNI configuration sorts first",
        ("sh -c 'echo [] > {root}/etc/cni/net.d/05-other.conflist'",),
        "sorts before 10-overlay.conflist",
        undo=("rm {root}/etc/cni/net.d/05-other.conflist",),
        is_agent_away=False,
    ),
    Fault(
        "NetworkManager that manages our device",
        (
            "sh -c 'cp -L \"$(command -v sleep)\" {root}/NetworkManager'",
            "sh -c '{root}/NetworkManager 600 >/dev/null 2>&1 & echo $! > {root}/pid'",
        ),
        "NetworkManager runs, and no file of it says to leave overlay.1 alone",
        undo=("sh -c 'kill \"$(cat {root}/pid)\"'",),
        is_agent_away=False,
    ),
)
