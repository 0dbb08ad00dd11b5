"""Who is on the stage: the lab's nodes and what each is for.

``SUBJECT`` is the node that faults happen to and ``PARTNER`` the one its pod
talks to. ``PEER`` only looks on, and ``SPARE`` may come and go.
"""

from typing import Final

from overlay.lab.chaos.stream import End
from overlay.lab.fabric import Lab
from overlay.lab.topology import LabOptions
from overlay.model.address import Family

SUBJECT: Final = "n1"
PARTNER: Final = "n2"
PEER: Final = "n3"
SPARE: Final = "n4"
LIVING: Final = (SUBJECT, PARTNER, PEER)
SUBNET_LEN: Final = 27  # room for 1,000 peers in the lab's pod network
VXLAN: Final = "vxlan"  # settings: what most faults are planted in, and others
DUAL_STACK: Final = "dual-stack"
HOST_GW: Final = "host-gw"


def options(name: str, setting: str = VXLAN) -> LabOptions:
    """Return the lab of a setting; the last two have no spare node and one etcd."""
    if setting == DUAL_STACK:
        return LabOptions(name=name, nodes=3, pods=1, families=(Family.IPV4, Family.IPV6))
    if setting == HOST_GW:
        return LabOptions(name=name, nodes=3, pods=1, backend="host-gw")
    return LabOptions(
        name=name,
        nodes=4,
        pods=1,
        families=(Family.IPV4,),
        etcd_members=3,
        subnet_len=SUBNET_LEN,
    )


def ends(lab: Lab, setting: str = VXLAN) -> tuple[End, End]:
    """Return the two pods that the stream runs between, with IPv6 addresses where they have any."""
    family = Family.IPV6 if setting == DUAL_STACK else Family.IPV4
    by_node = {pod.node: pod for pod in lab.pods()}
    one, other = (by_node[node] for node in (SUBJECT, PARTNER))
    return (
        End(one.namespace, str(one.addresses[family])),
        End(other.namespace, str(other.addresses[family])),
    )
