"""Address blocks with holes, taken apart into ranges that do not overlap.

A set of intervals in the kernel refuses elements that overlap, while rules may
name any blocks on any ports: each range here has all ports that are its.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import pairwise

from overlay.model.address import IPNetwork
from overlay.model.netpol import BlockPeer
from overlay.policy.network.ports import PortSet, union


def ranges(blocks: Iterable[tuple[BlockPeer, PortSet]], version: int) -> list[tuple[str, PortSet]]:
    """Return the ranges of one IP version as nft spells them, ascending, with their ports."""
    starts: dict[int, list[PortSet]] = {}
    ends: dict[int, list[PortSet]] = {}
    for block, ports in blocks:
        if block.block.version != version:
            continue
        for first, last in _outside_of_holes(block):
            starts.setdefault(first, []).append(ports)
            ends.setdefault(last + 1, []).append(ports)
    active: dict[PortSet, int] = {}
    found: list[tuple[int, int, PortSet]] = []
    for here, there in pairwise(sorted({*starts, *ends})):
        for ports in ends.get(here, ()):
            active[ports] -= 1
            if not active[ports]:
                del active[ports]
        for ports in starts.get(here, ()):
            active[ports] = active.get(ports, 0) + 1
        if not active:
            continue
        every = union(active)
        if found and found[-1][1] == here - 1 and found[-1][2] == every:
            found[-1] = (found[-1][0], there - 1, every)
        else:
            found.append((here, there - 1, every))
    return [(_spelled(first, last, version), ports) for first, last, ports in found]


def contains(block: BlockPeer, address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is in the block and in none of its holes."""
    return address in block.block and not any(address in hole for hole in block.holes)


def _outside_of_holes(block: BlockPeer) -> list[tuple[int, int]]:
    left: list[tuple[int, int]] = []
    first, last = _ends(block.block)
    for start, end in sorted(_ends(hole) for hole in block.holes):
        if start > first:
            left.append((first, start - 1))
        first = max(first, end + 1)
    if first <= last:
        left.append((first, last))
    return left


def _ends(network: IPNetwork) -> tuple[int, int]:
    first = int(network.network_address)
    # Not ``broadcast_address``: thousands of nodes are a network each, and it makes objects.
    return first, first | (1 << network.max_prefixlen - network.prefixlen) - 1


def _spelled(first: int, last: int, version: int) -> str:
    """Return a range as nft lists it: an address, a prefix, or from one to another."""
    kind = IPv4Address if version == 4 else IPv6Address
    if first == last:
        return str(kind(first))
    low, high = kind(first), kind(last)
    networks = summarize_address_range(low, high)
    only = next(networks)
    return str(only) if next(networks, None) is None else f"{low}-{high}"
