"""Who reaches whom on which ports, pods that policies cannot tell apart taken together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from overlay.model.address import IPAddress, IPNetwork
from overlay.model.errors import OverlayError
from overlay.model.netpol import BlockPeer, Pod, Protocol, World
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.decide import Decider
from overlay.policy.network.ports import Span

MOST_PAIRS: Final = 250_000  # of groups
_LAST_PORT: Final = 65535


class TooManyPairsError(OverlayError):
    """There are more pairs of pods than anybody would read."""


@dataclass(frozen=True, slots=True)
class Group:
    """Pods of one namespace with the same labels and ports: to policies they are one.

    ``address`` stands for all of them.
    """

    pods: tuple[Pod, ...]
    address: IPAddress

    @property
    def shown(self) -> str:
        """Return the first pod's name, and how many there are more."""
        first = "/".join(self.pods[0].key)
        more = len(self.pods) - 1
        return f"{first} and {more} alike" if more else first


@dataclass(frozen=True, slots=True)
class Reach:
    """What is open from one group to another."""

    source: Group
    target: Group
    ports: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """The ports that a change opens and closes from one group to another."""

    source: Group
    target: Group
    opened: tuple[Span, ...]
    closed: tuple[Span, ...]


def groups(world: World, *others: World, only: str = "") -> list[Group]:
    """Return the pods that have addresses, in groups, by name; those of a namespace with ``only``.

    The policies of ``others`` may tell pods apart too. The groups of two
    families are two: blocks of addresses are about one.
    """
    blocks = [block for each in (world, *others) for block in _blocks(each)]
    found: dict[object, list[tuple[Pod, IPAddress]]] = {}
    for _, pod in sorted(world.pods.items()):
        if not pod.counts or (only and pod.namespace != only):
            continue
        for version in (4, 6):
            address = min((a for a in pod.addresses if a.version == version), default=None, key=int)
            if address is not None:
                key = (
                    pod.namespace,
                    tuple(sorted(pod.labels.items())),
                    pod.ports,
                    version,
                    tuple(address in block for block in blocks),
                )
                found.setdefault(key, []).append((pod, address))
    return [Group(tuple(pod for pod, _ in same), same[0][1]) for same in found.values()]


def reaches(world: World, options: CompileOptions = DEFAULTS, *, only: str = "") -> Iterator[Reach]:
    """Yield what is open between groups, nothing where nothing is.

    Raises TooManyPairsError.
    """
    decider = Decider(world, options)
    for source, target in _pairs(groups(world, only=only)):
        ports = decider.reach(*_between(source, target))
        if ports:
            yield Reach(source, target, ports)


def differences(
    before: World, after: World, options: CompileOptions = DEFAULTS, *, only: str = ""
) -> Iterator[Difference]:
    """Yield what ``after`` opens and closes between the pods of ``before``.

    Raises TooManyPairsError.
    """
    old, new = Decider(before, options), Decider(after, options)
    for source, target in _pairs(groups(before, after, only=only)):
        ends = _between(source, target)
        was, becomes = old.reach(*ends), new.reach(*ends)
        if was != becomes:
            yield Difference(source, target, _less(becomes, was), _less(was, becomes))


def shown_ports(spans: Iterable[Span]) -> str:
    """Return ports as people write them.

    >>> shown_ports([(6, 80, 80), (17, 0, 65535)])
    'TCP 80, UDP'
    """
    return ", ".join(_shown(span) for span in spans)


def _shown(span: Span) -> str:
    number, first, last = span
    name = Protocol(number).name
    if first <= 1 and last == _LAST_PORT:
        return name
    return f"{name} {first}" if first == last else f"{name} {first}-{last}"


def _pairs(found: list[Group]) -> Iterator[tuple[Group, Group]]:
    if len(found) ** 2 > MOST_PAIRS:
        msg = f"{len(found)} groups of pods make too many pairs; choose one with --namespace"
        raise TooManyPairsError(msg)
    for source in found:
        for target in found:
            is_same_family = source.address.version == target.address.version
            if is_same_family and (source is not target or len(source.pods) > 1):
                yield source, target


def _between(source: Group, target: Group) -> tuple[IPAddress, IPAddress]:
    """Return two addresses; of one group those of two pods, for a pod reaches itself always."""
    if source is not target:
        return source.address, target.address
    version = source.address.version
    other = min((a for a in target.pods[1].addresses if a.version == version), key=int)
    return source.address, other


def _less(spans: tuple[Span, ...], others: tuple[Span, ...]) -> tuple[Span, ...]:
    """Return the ports in ``spans`` that are in none of ``others``."""
    left = list(spans)
    for number, first, last in others:
        rest: list[Span] = []
        for span in left:
            if span[0] != number or span[2] < first or span[1] > last:
                rest.append(span)
                continue
            if span[1] < first:
                rest.append((number, span[1], first - 1))
            if span[2] > last:
                rest.append((number, last + 1, span[2]))
        left = rest
    return tuple(left)


def _blocks(world: World) -> Iterator[IPNetwork]:
    for policy in world.policies.values():
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            for peer in rule.peers or ():
                if isinstance(peer, BlockPeer):
                    yield peer.block
                    yield from peer.holes
    for cluster in world.cluster_policies.values():
        for each in (*cluster.ingress, *cluster.egress):
            for block in each.peers or ():
                if isinstance(block, BlockPeer):
                    yield block.block
                    yield from block.holes
