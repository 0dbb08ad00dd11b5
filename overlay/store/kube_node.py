"""A node of Kubernetes as a lease: ``spec.podCIDRs``, flannel's annotations and one of ours.

Names and values are flannel's (``pkg/subnet/kube``), so that both run in one
cluster: a node that flannel annotated is a full peer. Our own facts are in
one annotation more, ``overlay``, with a digest of flannel's: where that does
not fit, flannel wrote the node since, and the facts count as absent.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Any, Final

import msgspec

from overlay.model.address import FAMILIES, Family, IPAddress, parse_node_address
from overlay.model.document import parse_json
from overlay.model.errors import LeaseFormatError, shown
from overlay.model.lease import LeaseAttributes, attributes_in, format_attributes, parse_attributes
from overlay.model.subnet import Subnet, subnet_of

TYPE: Final = "backend-type"
MANAGED: Final = "kube-subnet-manager"
DATA: Final = {Family.IPV4: "backend-data", Family.IPV6: "backend-v6-data"}
PUBLIC: Final = {Family.IPV4: "public-ip", Family.IPV6: "public-ipv6"}
OVERWRITE: Final = {Family.IPV4: "public-ip-overwrite", Family.IPV6: "public-ipv6-overwrite"}
FACTS: Final = "overlay"
CHALLENGE: Final = "overlay-challenge"  # decision 0009
_FLANNELS: Final = (TYPE, *DATA.values(), *PUBLIC.values())
WRITTEN: Final = (*_FLANNELS, MANAGED, FACTS)  # by an agent
_READ: Final = (*WRITTEN, *OVERWRITE.values(), CHALLENGE)
_DOCUMENT: Final = {  # flannel's annotations under the keys of a lease's value
    PUBLIC[Family.IPV4]: "PublicIP",
    PUBLIC[Family.IPV6]: "PublicIPv6",
    DATA[Family.IPV4]: "BackendData",
    DATA[Family.IPV6]: "BackendV6Data",
}
_MOST_ANNOTATION: Final = 16 * 1024  # bytes; flannel's have fewer than 100


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is kept of a node. ``annotations`` has those of the fabric by their short names.

    ``created`` is when the object was made, in seconds since 1970.
    """

    name: str
    created: int
    pod_cidrs: tuple[str, ...]
    annotations: Mapping[str, str]

    @property
    def is_managed(self) -> bool:
        """Return whether an agent, ours or flannel's, says that the node is of its fabric."""
        return self.annotations.get(MANAGED) == "true"


class _Meta(msgspec.Struct):
    name: str
    creationTimestamp: str | None = None  # noqa: N815 - the API's name
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct):
    podCIDR: str = ""  # noqa: N815 - the API's name
    podCIDRs: list[str] | None = None  # noqa: N815 - the API's name


class _Node(msgspec.Struct):
    metadata: _Meta
    spec: _Spec | None = None


class NodeReader:
    """Keeps of a node as JSON what is of one fabric: annotations that begin with ``stem``."""

    def __init__(self, stem: str) -> None:
        self._short = {stem + name: name for name in _READ}

    def read(self, raw: bytes) -> NodeFacts:
        """Return what is kept of a node. Raises LeaseFormatError."""
        try:
            node = msgspec.json.decode(raw, type=_Node)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            msg = f"node cannot be read: {exc}"
            raise LeaseFormatError(msg) from exc
        spec, meta = node.spec or _Spec(), node.metadata
        cidrs = spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])
        found = meta.annotations or {}
        kept = {short: found[full] for full, short in self._short.items() if full in found}
        return NodeFacts(meta.name, _seconds(meta.creationTimestamp), tuple(cidrs), kept)


def subnet_in(facts: NodeFacts, families: Iterable[Family]) -> Subnet | None:
    """Return the node's subnet in ``families``; None while it has no podCIDR of them.

    Kubernetes gives a node one podCIDR for each family; of more the first
    counts. Raises LeaseFormatError.
    """
    try:
        networks = [ip_network(text) for text in facts.pod_cidrs]
    except ValueError as exc:
        msg = f"node {facts.name}: podCIDR {exc}"
        raise LeaseFormatError(msg) from exc
    wanted = {family.value for family in families}
    chosen = [network for network in networks if network.version in wanted]
    return subnet_of(*chosen) if chosen else None


def attributes_of(facts: NodeFacts, *, is_own: bool = False) -> LeaseAttributes:
    """Return what the node's annotations say.

    ``is_own`` gives the addresses that the node itself found, before somebody
    overwrote what peers see. Raises LeaseFormatError naming the annotation.
    """
    found, name = facts.annotations, f"node {facts.name}"
    document: dict[str, Any] = {"BackendType": found.get(TYPE)}
    for family in FAMILIES:
        document[_DOCUMENT[PUBLIC[family]]] = found.get(PUBLIC[family])
        document[_DOCUMENT[DATA[family]]] = _json(name, found, DATA[family])
    facts_of_ours = _own_facts(found)
    if facts_of_ours is not None:
        document["Overlay"] = facts_of_ours
        if is_own:
            document |= {key: facts_of_ours[key] for key in _SEEN if key in facts_of_ours}
    return attributes_in(name, document)


def annotations_for(
    attributes: LeaseAttributes, before: NodeFacts, answers: int
) -> dict[str, str | None]:
    """Return what a node's annotations shall be, by short name; None where there shall be none.

    What ``before`` says in ``public-ip-overwrite`` is what peers get to see.
    ``answers`` counts the signs of life that the node gave.
    """
    public: dict[Family, IPAddress] = dict(attributes.public)
    for family in FAMILIES:
        text = before.annotations.get(OVERWRITE[family])
        if text and family in public:
            public[family] = _overwrite(before, OVERWRITE[family], text, family)
    wanted: dict[str, str | None] = {TYPE: attributes.backend_type, MANAGED: "true"}
    for family in FAMILIES:
        wanted[PUBLIC[family]] = str(public[family]) if family in public else None
        data = attributes.backend_data.get(family)
        wanted[DATA[family]] = _compact(dict(data)) if data is not None else None
    if wanted[DATA[Family.IPV4]] is None:
        wanted[DATA[Family.IPV4]] = "null"  # as flannel writes it for backends without data
    document = json.loads(format_attributes(attributes))
    ours = dict(document.get("Overlay", {}))
    if public != dict(attributes.public):
        ours |= {key: document[key] for key in _SEEN}
    if answers:
        ours["Answers"] = answers
    ours["Of"] = _digest({k: v for k, v in wanted.items() if v is not None})
    wanted[FACTS] = _compact(ours)
    return wanted


def answers_in(facts: NodeFacts) -> int:
    """Return how many signs of life the node's agents have given."""
    ours = _own_facts(facts.annotations)
    count = ours.get("Answers") if ours is not None else None
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


def challenge_in(facts: NodeFacts) -> LeaseAttributes | None:
    """Return who asks the node's agent for a sign of life; None where nobody does.

    What cannot be read asks nobody: an agent wrote none of it.
    """
    text = facts.annotations.get(CHALLENGE)
    if text is None:
        return None
    try:
        asked = parse_attributes(facts.name, text.encode())
    except LeaseFormatError:
        return None
    return asked if asked.owner is not None and asked.owner.node_name == facts.name else None


# Keys of our annotation: what the node found itself, where peers get to see something else.
_SEEN: Final = ("PublicIP", "PublicIPv6")


def _own_facts(found: Mapping[str, str]) -> dict[str, Any] | None:
    """Return our annotation; None where it cannot be read or is not of flannel's beside it."""
    text = found.get(FACTS)
    if text is None or len(text) > _MOST_ANNOTATION:
        return None
    try:
        facts = parse_json(text)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and facts.get("Of") == _digest(found) else None


def _digest(found: Mapping[str, str]) -> str:
    text = "\0".join(found.get(name, "") for name in _FLANNELS)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _json(name: str, found: Mapping[str, str], key: str) -> Any:
    text = found.get(key)
    if text is None:
        return None
    try:
        if len(text) > _MOST_ANNOTATION:
            msg = f"{len(text)} characters; at most {_MOST_ANNOTATION} are read"
            raise ValueError(msg)  # noqa: TRY301 - one message for both ways of being wrong
        return parse_json(text)
    except ValueError as exc:
        msg = f"{name}: annotation {key} {shown(text)} is not JSON: {exc}"
        raise LeaseFormatError(msg) from exc


def _overwrite(facts: NodeFacts, name: str, text: str, family: Family) -> IPAddress:
    try:
        return parse_node_address(text, family)
    except ValueError as exc:
        msg = f"node {facts.name}: annotation {name} {shown(text)}: {exc}; mend or remove it"
        raise LeaseFormatError(msg) from exc


def _compact(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _seconds(timestamp: str | None) -> int:
    """Return RFC 3339 as seconds since 1970; 0 for what is none."""
    try:
        return int(datetime.fromisoformat(timestamp or "").timestamp())
    except (ValueError, OverflowError):
        return 0
