"""How pods leave the pod networks."""

import enum
from dataclasses import dataclass
from typing import Final

from overlay.model.address import IPNetwork


class EgressMode(enum.Enum):
    """What happens to a packet that leaves the pod networks."""

    ISLAND = "island"  # it takes the node's address
    ISOLATED = "isolated"  # it is rejected with an answer
    FLAT = "flat"  # it keeps the pod's address; the network around routes pods


@dataclass(frozen=True, slots=True)
class Egress:
    """The mode, and what it leaves alone: ``non_masquerade`` keeps the pod's address."""

    mode: EgressMode = EgressMode.ISLAND
    non_masquerade: tuple[IPNetwork, ...] = ()
    random_fully: bool = True


DEFAULT_EGRESS: Final = Egress()
