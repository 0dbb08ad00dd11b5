"""The conformance cases: policies as YAML, what is expected of them, what changes meanwhile.

``cases/*.yaml`` hold a family each. A case that is ``mirrored`` stands for two:
itself, and the one where ingress and egress have changed places.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import yaml

from overlay.model.address import IPAddress, IPNetwork
from overlay.model.netpol import NAME_LABEL, Flow, Labels, NamedPort, Pod, PodKey, Protocol
from tests.netpol.statements import NODES, PODS, Probe, Statement, Truth, parse, truth

_CASES: Final = Path(__file__).with_name("cases")
NODE_OF: Final = {"a": "n1", "b": "n2", "c": "n3"}
_TIERS: Final = {"a": {"tier": "front"}, "b": {"tier": "back"}, "c": {}}
_WEB: Final = {"a": 80, "b": 81, "c": 80}
_TURNED: Final = {"ingress": "egress", "egress": "ingress", "from": "to", "to": "from"}
_TURNED_TYPES: Final = {"Ingress": "Egress", "Egress": "Ingress"}


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything is: addresses by the names of the tables."""

    pods: Mapping[str, frozenset[IPAddress]]
    nodes: Mapping[str, frozenset[IPAddress]]  # all that the node has, for who it is
    called: Mapping[str, frozenset[IPAddress]]  # one of each family, for calls to a node
    subnets: Mapping[str, frozenset[IPNetwork]]  # of the pods on a node
    pod_networks: frozenset[IPNetwork]

    def words(self) -> dict[str, str]:
        """Return what cases may write in braces: ``x/b.4``, ``n2.6``, ``n2.net.4``, ``pods.4``."""
        found: dict[str, str] = {}
        for name, addresses in (*self.pods.items(), *self.called.items()):
            found.update({f"{name}.{a.version}": str(a) for a in addresses})
        for name, networks in self.subnets.items():
            found.update({f"{name}.net.{n.version}": str(n) for n in networks})
        found.update({f"pods.{n.version}": str(n) for n in self.pod_networks})
        return found


@dataclass(frozen=True, slots=True)
class Moment:
    """The cluster between two changes, and what is expected then."""

    policies: Mapping[str, Mapping[str, Any]]  # spec by namespace/name
    pod_labels: Mapping[str, Labels]  # of those that are there
    namespace_labels: Mapping[str, Labels]
    finished: frozenset[str]
    statements: tuple[Statement, ...]
    hosts: frozenset[str] = frozenset()
    has_nodes: bool = False

    def objects(self, places: Places) -> list[dict[str, Any]]:
        """Return the policies as the API server would hand them out, addresses filled in."""
        words = places.words()
        return [
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"namespace": key.split("/")[0], "name": key.split("/")[1]},
                "spec": _filled(spec, words),
            }
            for key, spec in self.policies.items()
        ]

    def pods(self, places: Places) -> dict[PodKey, Pod]:
        """Return the pods."""
        pods = [self._pod(name, places) for name in self.pod_labels]
        return {pod.key: pod for pod in pods}

    def namespaces(self) -> dict[str, Labels]:
        """Return the namespaces' labels, their names among them."""
        return {n: {NAME_LABEL: n, **labels} for n, labels in self.namespace_labels.items()}

    def expected(self) -> Truth:
        """Return the truth table; who is gone or has finished neither calls nor is called."""
        pods = [name for name in PODS if name in self.pod_labels and name not in self.finished]
        return truth(self.statements, [*pods, *(NODES if self.has_nodes else ())], pods)

    def _pod(self, name: str, places: Places) -> Pod:
        namespace, _, pod = name.partition("/")
        is_on_host = name in self.hosts
        addresses = places.nodes[NODE_OF[pod]] if is_on_host else places.pods[name]
        return Pod(
            namespace=namespace,
            name=pod,
            addresses=addresses,
            labels=self.pod_labels[name],
            node=NODE_OF[pod],
            ports=(
                NamedPort("web", _WEB[pod], Protocol.TCP),
                NamedPort("web-udp", _WEB[pod], Protocol.UDP),
                NamedPort("web-sctp", _WEB[pod], Protocol.SCTP),
            ),
            is_on_host=is_on_host,
            is_finished=name in self.finished,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a family."""

    family: str
    name: str
    moments: tuple[Moment, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def cases() -> list[Case]:
    """Return all cases, families in the order of their names."""
    found: list[Case] = []
    for path in sorted(_CASES.glob("*.yaml")):
        for document in yaml.safe_load(path.read_text()):
            found += _cases(path.stem, document)
    return found


def _cases(family: str, document: Mapping[str, Any]) -> Iterator[Case]:
    moments = tuple(_moments(document))
    if not document.get("mirrored"):
        yield Case(family, document["case"], moments)
        return
    yield Case(family, f"{document['case']} (ingress)", moments)
    turned = tuple(
        Moment(
            {key: _turned(spec) for key, spec in moment.policies.items()},
            moment.pod_labels,
            moment.namespace_labels,
            moment.finished,
            tuple(statement.turned() for statement in moment.statements),
        )
        for moment in moments
    )
    yield Case(family, f"{document['case']} (egress)", turned)


def _moments(document: Mapping[str, Any]) -> Iterator[Moment]:
    """Yield the first moment and each that follows, with what was changed until then."""
    pods: dict[str, Labels] = {name: {"pod": name[-1], **_TIERS[name[-1]]} for name in PODS}
    namespaces: dict[str, Labels] = {
        "x": {"ns": "x", "team": "red"}, "y": {"ns": "y", "team": "red"}, "z": {"ns": "z"},
    }  # fmt: skip
    policies: dict[str, Any] = {}
    finished: set[str] = set()
    for step in ({**document, "then": ()}, *document.get("then", ())):
        pods |= step.get("pods", {}) | step.get("back", {})
        namespaces |= step.get("namespaces", {})
        policies |= step.get("policies", {})
        finished |= set(step.get("finished", ()))
        for name in step.get("gone", ()):
            del pods[name]
        yield Moment(
            {key: copy.deepcopy(spec) for key, spec in policies.items() if spec is not None},
            dict(pods),
            dict(namespaces),
            frozenset(finished),
            tuple(parse(line) for line in step["expect"]),
            frozenset(document.get("hosts", ())),
            bool(document.get("nodes")),
        )


def _turned(value: Any) -> Any:
    """Return a spec with ingress and egress, from and to exchanged."""
    if isinstance(value, dict):
        turned = {}
        for key, each in value.items():
            if key == "policyTypes":
                turned[key] = [_TURNED_TYPES[kind] for kind in each]
            elif key in {"podSelector", "namespaceSelector"}:
                turned[key] = each
            else:
                turned[_TURNED.get(key, key)] = _turned(each)
        return turned
    return [_turned(each) for each in value] if isinstance(value, list) else value


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, words) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, words) for each in value]
    if isinstance(value, str) and value.startswith("{"):
        word, _, rest = value[1:].partition("}")
        return words[word] + rest
    return value


def imagined() -> Places:
    """Return places for runs without a kernel, in the form of the lab's."""
    subnets = {
        node: frozenset(map(ip_network, (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")))
        for number, node in enumerate(NODES, 1)
    }
    pods = {
        name: frozenset(network[2 + "xyz".index(name[0])] for network in subnets[NODE_OF[name[-1]]])
        for name in PODS
    }
    called = {
        node: frozenset(ip_network(text)[number] for text in ("192.0.2.0/24", "2001:db8:1::/64"))
        for number, node in enumerate(NODES, 1)
    }
    networks = frozenset(map(ip_network, ("10.244.0.0/16", "fd00:10:244::/48")))
    return Places(pods, called, called, subnets, networks)


def flow_of(probe: Probe, moment: Moment, places: Places) -> Flow:
    """Return the connection that a question is about."""

    return Flow(
        _address(probe.source, probe.version, moment, places),
        _address(probe.target, probe.version, moment, places),
        Protocol[probe.protocol.upper()],
        probe.port,
    )


def _address(name: str, version: int, moment: Moment, places: Places) -> IPAddress:
    if name in moment.hosts:
        known = places.called[NODE_OF[name[-1]]]
    else:
        known = places.called[name] if name in NODES else places.pods[name]
    return next(each for each in known if each.version == version)
