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


def options(name: str) -> LabOptions:
    """Return the lab that the suite runs in."""
    return LabOptions(
        name=name,
        nodes=4,
        pods=1,
        families=(Family.IPV4,),
        etcd_members=3,
        subnet_len=SUBNET_LEN,
    )


def ends(lab: Lab) -> tuple[End, End]:
    """Return the two pods that the stream runs between."""
    by_node = {pod.node: pod for pod in lab.pods()}
    one, other = (by_node[node] for node in (SUBJECT, PARTNER))
    return (
        End(one.namespace, str(one.addresses[Family.IPV4])),
        End(other.namespace, str(other.addresses[Family.IPV4])),
    )
