"""What both stores refuse, and in which words."""

from typing import Final

from overlay.ipam.change import broken_by
from overlay.ipam.claim import (
    Claimant,
    Contest,
    Duplicate,
    Exhausted,
    is_kept_for,
    taken_subnets,
)
from overlay.model.errors import UsageError
from overlay.model.lease import RESERVATION, Lease, LeaseAttributes, LeaseView, Owner
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.node import NodeIdentity
from overlay.model.subnet import Subnet
from overlay.store.base import (
    Claim,
    ConfigConflictError,
    ContestedLeaseError,
    DuplicateNodeError,
    LeaseLostError,
    NoFreeSubnetError,
    StoreError,
    SubnetTakenError,
)

TWIN_WAY_OUT: Final = (
    "give one of them a --node-name of its own, or, on a cloned host, a machine id of its own "
    "(rm /etc/machine-id; systemd-machine-id-setup), and restart overlayd there"
)


def claimant_of(claim: Claim) -> Claimant:
    """Return the part of a claim that decisions are made from."""
    return Claimant(claim.node, claim.attributes.public, claim.preferred, claim.assured)


def refusal(decision: Duplicate | Contest | Exhausted, node: NodeIdentity) -> StoreError:
    """Return the error for a claim that was refused."""
    if isinstance(decision, Contest):
        return ContestedLeaseError(decision.lease)
    if isinstance(decision, Exhausted):
        return NoFreeSubnetError(
            f"none of the network's {decision.count} subnets is free: {decision.leased} leased, "
            f"{decision.reserved} reserved; widen the network, or release leases of nodes that "
            "are gone (overlayctl leases release SUBNET)"
        )
    return same_address_refusal(node, decision)


def same_address_refusal(node: NodeIdentity, found: Duplicate) -> DuplicateNodeError:
    """Return the error for a node that has another node's address."""
    lease = found.lease
    other = lease.attributes.owner
    other_id = other.node_id if other is not None else "?"
    return DuplicateNodeError(
        f"node {node.name or node.id} (id {node.id}) has the address {found.address} of node "
        f"{lease.node} (id {other_id}), which holds {lease.subnet}; give one of them another "
        "address, or, if the other node is gone: "
        f"overlayctl leases release {','.join(map(str, lease.subnet.networks()))}"
    )


def twin_refusal(attributes: LeaseAttributes, lease: Lease) -> DuplicateNodeError:
    """Return the error for a node under whose identity another one lives and holds ``lease``."""
    mine = attributes.owner
    name, node_id = (mine.node_name, mine.node_id) if mine is not None else ("?", "?")
    return DuplicateNodeError(
        f"node {name} ({shown_addresses(attributes)}) has the identity {node_id} of node "
        f"{lease.node} ({shown_addresses(lease.attributes)}), which is alive and holds "
        f"{lease.subnet}: two nodes must not share one; {TWIN_WAY_OUT}"
    )


def shown_addresses(attributes: LeaseAttributes) -> str:
    """Return a node's addresses as an operator would write them."""
    return ", ".join(str(address) for address in attributes.public.values())


def checked_config(text: str, view: LeaseView, *, force: bool) -> NetworkConfig:
    """Return the config that ``text`` describes, for writing on top of ``view``.

    Raises ConfigError, and ConfigConflictError with all that it would break.
    """
    config = parse_network_config(text)
    reasons = broken_by(config, view.config, view.leases.values())
    if reasons and not force:
        msg = "the new network config would break live leases: " + "; ".join(reasons)
        raise ConfigConflictError(msg)
    return config


def reservation_of(subnet: Subnet, node: str, view: LeaseView) -> Lease | LeaseAttributes:
    """Return what reserving ``subnet`` for ``node`` means under ``view``.

    A lease: it stands on that subnet and may be made permanent. Attributes:
    the subnet is free; they are what to write. Raises SubnetTakenError, and
    UsageError for a subnet outside the network or without a name.
    """
    held = view.leases.get(subnet.key)
    if held is not None:
        identity = NodeIdentity(node, node)
        is_same = is_kept_for(held, identity) or (not held.is_vacant and _is_held_by(held, node))
        if is_same or (not node and not held.is_vacant):
            return held
    taker = held or next((x for x in view.leases.values() if x.subnet.overlaps(subnet)), None)
    if taker is not None:
        how = "reserved for" if taker.is_vacant else "leased to"
        msg = f"{subnet} is {how} {taker.node} (as {taker.subnet}); release that first"
        raise SubnetTakenError(msg)
    if any(other.overlaps(subnet) for other in taken_subnets(view)):
        msg = f"{subnet} is under a key that cannot be read; delete that key first"
        raise SubnetTakenError(msg)
    if not node:
        msg = f"no lease on {subnet}: name the node to reserve it for"
        raise UsageError(msg)
    if view.config is not None and not view.config.covers(subnet):
        whole = " ".join(str(span.network) for span in view.config.ranges.values())
        msg = f"{subnet} lies outside the network {whole}"
        raise UsageError(msg)
    return LeaseAttributes(RESERVATION, owner=Owner(node_id=node, node_name=node))


def lost(lease: Lease) -> LeaseLostError:
    """Return the error for a lease that is not as its holder last saw it."""
    return LeaseLostError(
        f"lease {lease.subnet} of {lease.node} is not as it was seen at revision "
        f"{lease.mod_revision}: changed, deleted or expired"
    )


def _is_held_by(lease: Lease, node: str) -> bool:
    owner = lease.attributes.owner
    return bool(node) and owner is not None and node in (owner.node_id, owner.node_name)
