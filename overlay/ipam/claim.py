"""What a node that asks for a lease gets: its own, a reservation, or a new one.

Both stores decide here, from one view of the store; carrying the decision out
by compare-and-swap is theirs. Two nodes never hold one subnet: of two leases
that overlap, the one created first stands, and the holder of the other one
gives way.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay.ipam.subnets import Choose, count_all, is_free, pick_subnet
from overlay.model.address import Family, IPAddress
from overlay.model.errors import LeaseFormatError
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, Owner
from overlay.model.network import NetworkConfig
from overlay.model.node import NodeIdentity
from overlay.model.subnet import Subnet, parse_subnet_key

_V4_PART: Final = re.compile(r"\d+\.\d+\.\d+\.\d+-\d+")


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who asks: the node, where peers reach it, and the subnet that it would like back.

    ``assured`` are the revisions of leases under the node's id that are known
    to be nobody else's: it wrote them itself, or their holder shows no life.
    """

    node: NodeIdentity
    public: Mapping[Family, IPAddress]
    preferred: Subnet | None = None
    assured: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take over ``lease`` as it is, then let go of ``release``."""

    lease: Lease
    release: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Create:
    """Claim ``subnet``, which is free, then let go of ``release``."""

    subnet: Subnet
    release: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Refused: ``lease`` of another node stands under the claimant's ``address``."""

    lease: Lease
    address: IPAddress


@dataclass(frozen=True, slots=True)
class Contest:
    """Not yet: ``lease`` may be the claimant's own, or that of a living twin (decision 0007)."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Refused: none of the ``count`` subnets is free."""

    count: int
    leased: int
    reserved: int


Decision: TypeAlias = Adopt | Create | Duplicate | Contest | Exhausted


def decide(view: LeaseView, claimant: Claimant, config: NetworkConfig, choose: Choose) -> Decision:
    """Return what ``claimant`` gets from ``view``.

    In this order: refusal while another node's lease stands under one of its
    addresses; a question, while a lease under its id may be a twin's; its own
    oldest lease that ``config`` still offers and that no older lease overlaps;
    a reservation made for it; ``claimant.preferred``; any free subnet. Own
    leases that are not kept are to be released.
    """
    leases = sorted(view.leases.values(), key=lambda lease: lease.create_revision)
    clash = same_address(leases, claimant)
    if clash is not None:
        return clash
    own = [lease for lease in leases if is_own(lease, claimant)]
    doubtful = next((lease for lease in own if _may_be_a_twins(lease, claimant)), None)
    if doubtful is not None:
        return Contest(doubtful)
    kept = next((lease for lease in own if _is_tenable(lease, leases, claimant, config)), None)
    release = tuple(lease for lease in own if lease is not kept)
    if kept is not None:
        return Adopt(kept, release)
    for lease in leases:
        if is_kept_for(lease, claimant.node) and _is_tenable(lease, leases, claimant, config):
            return Adopt(lease, release)
    taken = taken_subnets(view)
    preferred = claimant.preferred
    if preferred is not None and config.offers(preferred) and is_free(preferred, taken):
        return Create(preferred, release)
    subnet = pick_subnet(config, taken, choose)
    if subnet is not None:
        return Create(subnet, release)
    reserved = sum(lease.is_vacant for lease in leases)
    return Exhausted(count_all(config), len(leases) - reserved, reserved)


def is_own(lease: Lease, claimant: Claimant) -> bool:
    """Return whether ``lease`` is the claimant's.

    Under its node id; or, for a lease of flannel, which knows no node ids,
    under one of its addresses.
    """
    if lease.is_vacant:
        return False
    owner = lease.attributes.owner
    if owner is not None:
        return owner.node_id == claimant.node.id
    return _shared_address(lease, claimant) is not None


def is_kept_for(lease: Lease, node: NodeIdentity) -> bool:
    """Return whether ``lease`` is a vacant reservation made for ``node``, by id or by name."""
    owner = lease.attributes.owner
    return (
        lease.is_vacant
        and owner is not None
        and (owner.node_id == node.id or (bool(node.name) and owner.node_name == node.name))
    )


def taken_subnets(view: LeaseView) -> tuple[Subnet, ...]:
    """Return every subnet that cannot be claimed: leased, reserved, or under an unreadable key."""
    unreadable = (subnet_behind(skipped.key) for skipped in view.skipped)
    return (
        *(lease.subnet for lease in view.leases.values()),
        *(subnet for subnet in unreadable if subnet is not None),
    )


def subnet_behind(key: str) -> Subnet | None:
    """Return the subnet that a key takes although it, or its value, cannot be read.

    >>> str(subnet_behind("10.244.3.0-24&junk"))
    '10.244.3.0/24'
    """
    match = _V4_PART.match(key)
    for text in (key, match[0] if match else ""):
        try:
            return parse_subnet_key(text)
        except LeaseFormatError:
            continue
    return None


def gives_way(lease: Lease, others: Iterable[Lease]) -> bool:
    """Return whether an older lease among ``others`` overlaps ``lease``."""
    return any(
        other.create_revision < lease.create_revision and other.subnet.overlaps(lease.subnet)
        for other in others
    )


def is_same_place(ours: LeaseAttributes, theirs: LeaseAttributes) -> bool:
    """Return whether both were written by one host between two boots, as far as they tell.

    Families that only one of them has say nothing, and neither does a boot
    that one of them leaves out.
    """
    common = ours.public.keys() & theirs.public.keys()
    is_same_address = all(ours.public[family] == theirs.public[family] for family in common)
    mine, other = ours.owner, theirs.owner
    if mine is None or other is None:
        return is_same_address
    return (
        is_same_address
        and mine.node_name == other.node_name
        and (not mine.boot or not other.boot or mine.boot == other.boot)
    )


def rival_of(own: Lease, leases: Iterable[Lease]) -> Lease | None:
    """Return the older lease of another host under the identity or an address of ``own``.

    Of two that claim in the same moment neither sees the other before it has
    claimed.
    """
    mine = own.attributes.owner
    if mine is None:
        return None
    node = NodeIdentity(mine.node_id, mine.node_name, mine.boot)
    claimant = Claimant(node, own.attributes.public)
    older = [other for other in leases if other.create_revision < own.create_revision]
    clash = same_address(older, claimant)
    if clash is not None:
        return clash.lease
    return next((o for o in older if is_own(o, claimant) and _may_be_a_twins(o, claimant)), None)


def _may_be_a_twins(lease: Lease, claimant: Claimant) -> bool:
    node = claimant.node
    if lease.attributes.owner is None or lease.mod_revision in claimant.assured:
        return False
    mine = LeaseAttributes("", claimant.public, owner=Owner(node.id, node.name, boot=node.boot))
    return not is_same_place(mine, lease.attributes)


def _is_tenable(
    lease: Lease, leases: Sequence[Lease], claimant: Claimant, config: NetworkConfig
) -> bool:
    others = (
        other
        for other in leases
        if not is_own(other, claimant) and not is_kept_for(other, claimant.node)
    )
    return config.offers(lease.subnet) and not gives_way(lease, others)


def same_address(leases: Iterable[Lease], claimant: Claimant) -> Duplicate | None:
    """Return the lease of another node that stands under one of the claimant's addresses."""
    for lease in leases:
        owner = lease.attributes.owner
        if lease.is_vacant or owner is None or owner.node_id == claimant.node.id:
            continue
        address = _shared_address(lease, claimant)
        if address is not None:
            return Duplicate(lease, address)
    return None


def _shared_address(lease: Lease, claimant: Claimant) -> IPAddress | None:
    for family, address in claimant.public.items():
        if lease.attributes.public.get(family) == address:
            return address
    return None
