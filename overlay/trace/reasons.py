"""Why a step breaks, as words of a fixed list: all that a node tells others of its own half.

Rules, names of pods, paths and interfaces of a host are in no lease, so that
they leave it in no answer (docs/decisions/0008). The asker spells each word
with what it knows itself: the question and the leases.
"""

import enum
from collections.abc import Mapping
from typing import Final


class Reason(enum.StrEnum):
    """One word a cause."""

    UNSAID = "unsaid"
    POD_LINK_GONE = "pod-link-gone"
    POD_LINK_DOWN = "pod-link-down"
    POD_SANDBOX = "pod-sandbox"
    POD_BRIDGE = "pod-bridge"
    POD_INTERFACE_GONE = "pod-interface-gone"
    POD_INTERFACE_DOWN = "pod-interface-down"
    POD_ADDRESS = "pod-address"
    POD_ROUTE = "pod-route"
    POD_NEIGHBOR = "pod-neighbor"
    NO_POD = "no-pod"
    POD_UNROUTED = "pod-unrouted"
    NOT_OURS = "not-ours"
    FORWARDING = "forwarding"
    RP_FILTER = "rp-filter"
    DEVICE_GONE = "device-gone"
    DEVICE_DOWN = "device-down"
    OTHER_VNI = "other-vni"
    OWN_MAC = "own-mac"
    ROUTE = "route"
    SHADOWED = "shadowed"
    NEIGHBOR = "neighbor"
    FDB = "fdb"
    UNDERLAY_DOWN = "underlay-down"
    UNDERLAY_ROUTE = "underlay-route"
    UNDERLAY_SILENT = "underlay-silent"
    MTU = "mtu"
    TABLE_GONE = "table-gone"
    NETWORK_POLICY = "network-policy"
    OWN_RULE = "own-rule"
    OWN_RULE_FORGED = "own-rule-forged"
    OWN_RULE_NO_PEER = "own-rule-no-peer"
    OWN_RULE_OUTSIDE = "own-rule-outside"
    OWN_RULE_TUNNEL_PORT = "own-rule-tunnel-port"
    HOST_RULE = "host-rule"
    HOST_POLICY = "host-policy"
    REWRITTEN = "rewritten"


# With {node}, the one that was asked, {source} and {destination} of the packet there.
WORDS: Final[Mapping[Reason, str]] = {
    Reason.UNSAID: "it ends here",
    Reason.POD_LINK_GONE: "the node's end of the pod's link is gone",
    Reason.POD_LINK_DOWN: "the node's end of the pod's link is down",
    Reason.POD_SANDBOX: "the pod's namespace cannot be entered",
    Reason.POD_BRIDGE: "the pods' bridge is gone or down",
    Reason.POD_INTERFACE_GONE: "the pod has no interface any more",
    Reason.POD_INTERFACE_DOWN: "the pod's interface is down",
    Reason.POD_ADDRESS: "the pod has lost its address",
    Reason.POD_ROUTE: "the pod has no route, or not by the fabric",
    Reason.POD_NEIGHBOR: "a MAC address between node and pod is wrong",
    Reason.NO_POD: "no pod of {node} has {destination}",
    Reason.POD_UNROUTED: "the route to the pod is gone",
    Reason.NOT_OURS: "{destination} is no address of {node} any more",
    Reason.FORWARDING: "{node} does not forward packets",
    Reason.RP_FILTER: "the reverse path filter drops it",
    Reason.DEVICE_GONE: "{node} has no VXLAN device for it",
    Reason.DEVICE_DOWN: "the VXLAN device is down",
    Reason.OTHER_VNI: "the VXLAN device has another VNI than the lease says",
    Reason.OWN_MAC: "the VXLAN device has another MAC address than the lease of {node} says",
    Reason.ROUTE: "the route to {destination} is gone, or leads elsewhere",
    Reason.SHADOWED: "a route or rule of others goes before the one to {destination}",
    Reason.NEIGHBOR: "the neighbor entry is gone, or not as the lease says",
    Reason.FDB: "the forwarding entry is gone, or not as the lease says",
    Reason.UNDERLAY_DOWN: "the underlay's interface is down",
    Reason.UNDERLAY_ROUTE: "{node} has no way through the underlay",
    Reason.UNDERLAY_SILENT: "the next hop in the underlay does not answer",
    Reason.MTU: "full packets of the VXLAN device do not fit the underlay",
    Reason.TABLE_GONE: "the fabric's rules are gone",
    Reason.NETWORK_POLICY: "network policies do not allow it",
    Reason.OWN_RULE: "a rule of the fabric stops it",
    Reason.OWN_RULE_FORGED: "a rule of the fabric stops it: a source address, forged",
    Reason.OWN_RULE_NO_PEER: "a rule of the fabric stops it: tunnel packets from no peer",
    Reason.OWN_RULE_OUTSIDE: "a rule of the fabric stops it: Egress.Mode is isolated",
    Reason.OWN_RULE_TUNNEL_PORT: "a rule of the fabric stops it: a pod to the tunnel port",
    Reason.HOST_RULE: "a rule of the host, which is not the fabric's, stops it",
    Reason.HOST_POLICY: "the policy of a chain of the host, which is not the fabric's, stops it",
    Reason.REWRITTEN: "{source} is rewritten on the way to a party of the fabric",
}

# By the comment of our own rule (overlay/policy/egress.py).
OWN_RULES: Final[Mapping[str, Reason]] = {
    "a source address, forged": Reason.OWN_RULE_FORGED,
    "tunnel packets from no peer": Reason.OWN_RULE_NO_PEER,
    "a pod to the outside": Reason.OWN_RULE_OUTSIDE,
    "the outside to a pod": Reason.OWN_RULE_OUTSIDE,
    "a pod to the tunnel port": Reason.OWN_RULE_TUNNEL_PORT,
}
