"""Which subnets of a network are free, and the choice of one.

Nothing is enumerated: a range is a row of numbered subnets, what is taken
covers spans of those numbers, and the k-th free number is found by walking
the spans. An IPv6 network of 2**40 subnets costs as much as a /16.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from overlay.model.address import Family, IPNetwork, family_of, last_address
from overlay.model.network import NetworkConfig, SubnetRange
from overlay.model.subnet import Subnet, subnet_of

# Returns a number from 0 to its argument, exclusive: random.randrange, or a test's own.
Choose: TypeAlias = Callable[[int], int]
Span: TypeAlias = tuple[int, int]  # numbers of the first and the last subnet, both included


def pick_subnet(config: NetworkConfig, taken: Iterable[Subnet], choose: Choose) -> Subnet | None:
    """Return a subnet that ``config`` offers and that overlaps nothing in ``taken``.

    Every free subnet is as likely as any other. With two families the numbers
    of both are the same wherever such a pair is free, so that two nodes that
    race for one IPv4 subnet race for one key. None when nothing is left.
    """
    spans = taken_spans(config, taken)
    ranges = [config.ranges[family] for family in config.families]
    paired = merge(span for family in config.families for span in spans[family])
    index = _pick(min(r.count for r in ranges), paired, choose)
    if index is not None:
        return subnet_of(*(r.subnet(index) for r in ranges))
    networks: list[IPNetwork] = []
    for family in config.families:
        index = _pick(config.ranges[family].count, spans[family], choose)
        if index is None:
            return None
        networks.append(config.ranges[family].subnet(index))
    return subnet_of(*networks)


def is_free(subnet: Subnet, taken: Iterable[Subnet]) -> bool:
    """Return whether ``subnet`` overlaps nothing in ``taken``, in any family."""
    return not any(subnet.overlaps(other) for other in taken)


def count_all(config: NetworkConfig) -> int:
    """Return how many nodes the network has room for."""
    return min(span.count for span in config.ranges.values())


def count_free(config: NetworkConfig, taken: Iterable[Subnet]) -> int:
    """Return how many more nodes can claim a subnet."""
    spans = taken_spans(config, taken)
    return min(
        config.ranges[family].count - sum(last - first + 1 for first, last in spans[family])
        for family in config.families
    )


def taken_spans(config: NetworkConfig, taken: Iterable[Subnet]) -> dict[Family, tuple[Span, ...]]:
    """Return the numbers of each family's range that ``taken`` touches, merged and in order."""
    spans: dict[Family, list[Span]] = {family: [] for family in config.families}
    for subnet in taken:
        for network in subnet.networks():
            family = family_of(network)
            if family in spans:
                spans[family].extend(_covered(config.ranges[family], network))
    return {family: merge(found) for family, found in spans.items()}


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return ``spans`` in order, with those that touch or overlap made one.

    >>> merge([(7, 9), (1, 2), (3, 3), (8, 12)])
    ((1, 3), (7, 12))
    """
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _covered(span: SubnetRange, network: IPNetwork) -> Iterable[Span]:
    """Yield the numbers that ``network`` touches; a lease may be wider or narrower than ours."""
    shift = family_of(network).bits - span.prefixlen
    first = (int(network.network_address) - int(span.first)) >> shift
    last = (last_address(network) - int(span.first)) >> shift
    if last >= 0 and first < span.count:
        yield max(first, 0), min(last, span.count - 1)


def _pick(count: int, taken: Sequence[Span], choose: Choose) -> int | None:
    """Return a number below ``count`` outside the merged spans ``taken``."""
    inside = [(first, min(last, count - 1)) for first, last in taken if first < count]
    free = count - sum(last - first + 1 for first, last in inside)
    if free <= 0:
        return None
    index = choose(free)
    for first, last in inside:
        if index < first:
            break
        index += last - first + 1
    return index
