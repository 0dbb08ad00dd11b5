"""Pods of the Kubernetes API as policies see them: a node's own whole, of others what is asked for.

A pod is some 8 KB of JSON. Of one on another node its addresses are kept, the
labels that any selector asks about, and named ports where a rule names one;
pods of one Deployment share their labels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

import msgspec

from overlay.model.address import IPAddress
from overlay.model.cluster_policy import ClusterNetworkPolicy, ClusterRule, NamedPortMatch
from overlay.model.errors import LeaseFormatError
from overlay.model.netpol import Labels, NamedPort, NetworkPolicy, Pod, PodPeer, Protocol, Rule

# A static pod's object in the API has a uid of its own; runtimes are told the one in here.
_STATIC: Final = "kubernetes.io/config.hash"
_FINISHED: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be known of pods: the labels by these keys, and whether ports by name."""

    labels: frozenset[str] = frozenset()
    ports: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(self.labels | other.labels, self.ports or other.ports)

    def covers(self, other: "Needs") -> bool:
        """Return whether who knows this much knows all of ``other``."""
        return other.labels <= self.labels and self.ports >= other.ports


def needs_of(
    policies: Iterable[NetworkPolicy], cluster: Iterable[ClusterNetworkPolicy] = ()
) -> Needs:
    """Return what policies ask of pods."""
    labels: set[str] = set()
    ports = False
    for policy in policies:
        labels.update(each.key for each in policy.pods.requirements)
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            ports |= _asks(rule, labels)
    for each in cluster:
        labels.update(one.key for one in each.subject.pods.requirements)
        for cluster_rule in (*each.ingress, *each.egress):
            ports |= _asks(cluster_rule, labels)
    return Needs(frozenset(labels), ports)


def _asks(rule: Rule | ClusterRule, labels: set[str]) -> bool:
    """Add the label keys of a rule's peers; return whether it names a port."""
    for peer in rule.peers or ():
        if isinstance(peer, PodPeer):
            labels.update(each.key for each in peer.pods.requirements)
    return any(
        isinstance(each, NamedPortMatch) or isinstance(each.port, str) for each in rule.ports or ()
    )


class _Meta(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None


class _Noted(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _Port(msgspec.Struct):
    name: str = ""
    containerPort: int = 0  # noqa: N815 - the API's name
    protocol: str = "TCP"


class _Container(msgspec.Struct):
    ports: list[_Port] | None = None
    restartPolicy: str | None = None  # noqa: N815 - the API's name


class _Spec(msgspec.Struct):
    nodeName: str = ""  # noqa: N815 - the API's name
    hostNetwork: bool = False  # noqa: N815 - the API's name
    containers: list[_Container] | None = None
    initContainers: list[_Container] | None = None  # noqa: N815 - the API's name


class _Address(msgspec.Struct):
    ip: str = ""


class _Status(msgspec.Struct):
    phase: str = ""
    podIP: str = ""  # noqa: N815 - the API's name
    podIPs: list[_Address] | None = None  # noqa: N815 - the API's name


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: _Spec | None = None
    status: _Status | None = None


class _NotedPod(msgspec.Struct):
    metadata: _Noted


def read_local_pod(raw: bytes) -> Pod:
    """Return a pod with all that policies look at. Raises LeaseFormatError."""
    try:
        found = msgspec.json.decode(raw, type=_Pod)
        noted = msgspec.json.decode(raw, type=_NotedPod).metadata.annotations or {}
        meta = found.metadata
        return _made(found, meta.labels or {}, noted.get(_STATIC, meta.uid), has_ports=True)
    except (msgspec.MsgspecError, ValueError) as exc:
        msg = f"pod cannot be read: {exc}"
        raise LeaseFormatError(msg) from exc


@dataclass(slots=True)
class PeerPodReader:
    """Reads pods of other nodes; ``begin`` says what of them is kept from then on."""

    needs: Needs = field(default_factory=Needs)
    _shared: dict[tuple[tuple[str, str], ...], Labels] = field(default_factory=dict)

    def begin(self, needs: Needs) -> None:
        """Keep what is in ``needs``. What was read before has less: read it anew."""
        self.needs = needs
        self._shared = {}

    def read(self, raw: bytes) -> Pod:
        """Return what is kept of a pod. Raises LeaseFormatError."""
        try:
            found = msgspec.json.decode(raw, type=_Pod)
            given = found.metadata.labels or {}
            pairs = tuple(sorted((k, v) for k, v in given.items() if k in self.needs.labels))
            labels = self._shared.setdefault(pairs, dict(pairs))
            return _made(found, labels, found.metadata.uid, has_ports=self.needs.ports)
        except (msgspec.MsgspecError, ValueError) as exc:
            msg = f"pod cannot be read: {exc}"
            raise LeaseFormatError(msg) from exc


def _made(found: _Pod, labels: Labels, uid: str, *, has_ports: bool) -> Pod:
    meta, spec, status = found.metadata, found.spec or _Spec(), found.status or _Status()
    return Pod(
        meta.namespace,
        meta.name,
        _addresses(status),
        labels,
        spec.nodeName,
        tuple(_named_ports(spec)) if has_ports else (),
        is_on_host=spec.hostNetwork,
        is_finished=status.phase in _FINISHED,
        uid=uid,
    )


def _addresses(status: _Status) -> frozenset[IPAddress]:
    texts = {each.ip for each in status.podIPs or ()} | {status.podIP}
    return frozenset(ip_address(text) for text in texts if text)


def _named_ports(spec: _Spec) -> list[NamedPort]:
    """Return the ports with names, of containers and of sidecars, which are init containers."""
    sidecars = [each for each in spec.initContainers or () if each.restartPolicy == "Always"]
    return [
        NamedPort(port.name, port.containerPort, Protocol[port.protocol])
        for container in (*(spec.containers or ()), *sidecars)
        for port in container.ports or ()
        if port.name and port.protocol in Protocol.__members__
    ]
