"""Who reaches whom on which ports, pods that policies cannot tell apart taken together."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from overlay.model.address import IPAddress, IPNetwork
from overlay.model.cluster_policy import NamedPortMatch
from overlay.model.errors import OverlayError
from overlay.model.netpol import BlockPeer, Pod, PodPeer, Protocol, World
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.decide import Decider
from overlay.policy.network.ports import Span

T = TypeVar("T")

MOST_PAIRS: Final = 250_000  # of groups
_LAST_PORT: Final = 65535


class TooManyPairsError(OverlayError):
    """There are more pairs of pods than anybody would read."""


@dataclass(frozen=True, slots=True)
class Group:
    """Pods of one namespace that no policy tells apart.

    ``addresses`` stand for all of them, one of each family that they have.
    """

    pods: tuple[Pod, ...]
    addresses: tuple[IPAddress, ...]

    @property
    def shown(self) -> str:
        """Return the first pod's name, and how many there are more."""
        first = "/".join(self.pods[0].key)
        more = len(self.pods) - 1
        return f"{first} and {more} alike" if more else first

    @property
    def namespace(self) -> str:
        """Return the namespace of its pods."""
        return self.pods[0].namespace


@dataclass(frozen=True, slots=True)
class Reach:
    """What is open from one group to another.

    ``over`` is an IP version, None where it is the same over each that both have.
    """

    source: Group
    target: Group
    ports: tuple[Span, ...]
    over: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """The ports that a change opens and closes from one group to another, ``over`` as in Reach."""

    source: Group
    target: Group
    opened: tuple[Span, ...]
    closed: tuple[Span, ...]
    over: int | None = None


def groups(world: World, *others: World) -> list[Group]:
    """Return the pods that have addresses, in groups, by name.

    The policies of ``others`` may tell pods apart too. Labels that no policy
    asks for, the hash of a Deployment's template for example, tell nobody apart.
    """
    asked = [_asked(each) for each in (world, *others)]
    names = frozenset().union(*(each.labels for each in asked))
    has_ports = any(each.has_port_names for each in asked)
    blocks = [block for each in (world, *others) for block in _blocks(each)]
    found: dict[object, list[tuple[Pod, tuple[IPAddress, ...]]]] = {}
    for _, pod in sorted(world.pods.items()):
        if not pod.counts:
            continue
        firsts = [
            min((a for a in pod.addresses if a.version == version), default=None, key=int)
            for version in (4, 6)
        ]
        addresses = tuple(address for address in firsts if address is not None)
        if addresses:
            key = (
                pod.namespace,
                tuple(sorted((k, v) for k, v in pod.labels.items() if k in names)),
                pod.ports if has_ports else (),
                tuple(
                    (address.version, tuple(address in block for block in blocks))
                    for address in addresses
                ),
            )
            found.setdefault(key, []).append((pod, addresses))
    return [Group(tuple(pod for pod, _ in same), same[0][1]) for same in found.values()]


def reaches(world: World, options: CompileOptions = DEFAULTS, *, only: str = "") -> Iterator[Reach]:
    """Yield what is open between groups, nothing where nothing is; pairs with ``only`` alone.

    Raises TooManyPairsError.
    """
    decider = Decider(world, options)
    for source, target in _pairs(groups(world), only):
        for over, ports in _over(
            {v: decider.reach(*ends) for v, ends in _between(source, target).items()}
        ):
            if ports:
                yield Reach(source, target, ports, over)


def differences(
    before: World,
    after: World,
    options: CompileOptions = DEFAULTS,
    planned: CompileOptions | None = None,
    *,
    only: str = "",
) -> Iterator[Difference]:
    """Yield what ``after`` opens and closes between the pods of ``before``.

    ``planned`` are the options of ``after``, where they are others; with
    ``only`` a namespace, pairs with a pod of it at either end. Raises
    TooManyPairsError.
    """
    old, new = Decider(before, options), Decider(after, planned or options)
    for source, target in _pairs(groups(before, after), only):
        changes = {
            version: (old.reach(*ends), new.reach(*ends))
            for version, ends in _between(source, target).items()
        }
        for over, (was, becomes) in _over(changes):
            if was != becomes:
                yield Difference(source, target, _less(becomes, was), _less(was, becomes), over)


def shown_ports(spans: Iterable[Span], over: int | None = None) -> str:
    """Return ports as people write them, of one IP version where it is said.

    >>> shown_ports([(6, 80, 80), (17, 0, 65535)], 4)
    'TCP 80, UDP over IPv4'
    """
    family = f" over IPv{over}" if over is not None else ""
    return ", ".join(_shown(span) for span in spans) + family


def _shown(span: Span) -> str:
    number, first, last = span
    name = Protocol(number).name
    if first <= 1 and last == _LAST_PORT:
        return name
    return f"{name} {first}" if first == last else f"{name} {first}-{last}"


def _over(found: Mapping[int, T]) -> Iterator[tuple[int | None, T]]:
    """Yield what holds over each IP version; once, for None, where it is the same over all."""
    values = list(found.items())
    if values and all(value == values[0][1] for _, value in values):
        yield None, values[0][1]
    else:
        yield from values


def _pairs(found: list[Group], only: str) -> Iterator[tuple[Group, Group]]:
    within = sum(group.namespace == only for group in found) if only else len(found)
    count = len(found) ** 2 - (len(found) - within) ** 2
    if count > MOST_PAIRS:
        way_out = "" if only else "; choose one with --namespace"
        msg = f"{len(found)} groups of pods make {count} pairs, more than {MOST_PAIRS}{way_out}"
        raise TooManyPairsError(msg)
    for source in found:
        for target in found:
            if only and only not in {source.namespace, target.namespace}:
                continue
            if source is not target or len(source.pods) > 1:
                yield source, target


def _between(source: Group, target: Group) -> dict[int, tuple[IPAddress, IPAddress]]:
    """Return two addresses by IP version, for each version that both have.

    Of one group those of two pods, for a pod reaches itself always.
    """
    ends: dict[int, tuple[IPAddress, IPAddress]] = {}
    for one in source.addresses:
        of_other = target.addresses if source is not target else target.pods[1].addresses
        others = [each for each in of_other if each.version == one.version]
        if others:
            ends[one.version] = (one, min(others, key=int))
    return ends


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the policies of a world ask of pods."""

    labels: frozenset[str]
    has_port_names: bool


def _asked(world: World) -> _Asked:
    labels: set[str] = set()
    names = False
    for policy in world.policies.values():
        labels.update(r.key for r in policy.pods.requirements)
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            labels.update(_keys(rule.peers))
            names = names or any(isinstance(each.port, str) for each in rule.ports or ())
    for cluster in world.cluster_policies.values():
        labels.update(r.key for r in cluster.subject.pods.requirements)
        for cluster_rule in (*cluster.ingress, *cluster.egress):
            labels.update(_keys(cluster_rule.peers))
            names = names or any(isinstance(e, NamedPortMatch) for e in cluster_rule.ports or ())
    return _Asked(frozenset(labels), names)


def _keys(peers: Iterable[object] | None) -> Iterator[str]:
    for peer in peers or ():
        if isinstance(peer, PodPeer):
            yield from (requirement.key for requirement in peer.pods.requirements)


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
