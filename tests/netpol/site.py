"""Nine pods in three namespaces on three nodes: a lab, and who is where in it.

Pods a run on n1, b on n2, c on n3, so that the pods of a namespace are on
different nodes, and the pods of a node in different namespaces.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from overlay.lab import netns
from overlay.lab.fabric import Lab, running
from overlay.lab.topology import POD_NETWORKS, LabOptions
from overlay.model.address import Family
from overlay.model.netpol import Protocol
from tests.netpol import pods
from tests.netpol.casebook import Moment, Places, flow_of
from tests.netpol.prober import Door, Prober, Question, has_sctp, probing
from tests.netpol.statements import NODES, PODS, Probe

_PORTS = (80, 81)


@dataclass(frozen=True, slots=True)
class Site:
    """A lab with its pods, and somebody who listens in each of them."""

    lab: Lab
    places: Places
    namespaces: Mapping[str, str]  # of the kernel, by the names of the tables
    prober: Prober

    def wrong(self, moment: Moment) -> tuple[int, list[str]]:
        """Try every connection of the moment; return how many, and in words what is wrong."""
        expected = {
            probe: is_open
            for probe, is_open in moment.expected().items()
            if probe.protocol != "sctp" or has_sctp()
        }
        heard = self.prober.ask([self._question(p, moment, o) for p, o in expected.items()])
        return len(expected), [
            f"{probe}: {answer.value}, though it should be {'open' if is_open else 'closed'}"
            for (probe, is_open), answer in zip(expected.items(), heard, strict=True)
            if (answer.value == "answered") is not is_open
        ]

    def _question(self, probe: Probe, moment: Moment, should_answer: bool) -> Question:
        """Return what to ask; a pod in the host's network is its node."""
        on_host = probe.source in moment.hosts
        source = f"n{'abc'.index(probe.source[-1]) + 1}" if on_host else probe.source
        flow = flow_of(probe, moment, self.places)
        return Question(
            self.namespaces[source], flow.destination, flow.protocol, flow.port, should_answer
        )


@contextlib.contextmanager
def site(name: str) -> Iterator[Site]:
    """Bring such a lab up for the length of a ``with`` block."""
    families = (Family.IPV4, Family.IPV6)
    with running(LabOptions(name=name, nodes=3, pods=0, families=families)) as lab:
        try:
            hosts = {node.name: node for node in lab.topology.nodes}
            kernel = {pod: pods.namespace_of(lab, pod) for pod in PODS}
            kernel |= {node: hosts[node].namespace for node in NODES}
            places = Places(
                pods=pods.attach(lab),
                nodes={n: frozenset(netns.inside(kernel[n], netns.addresses)) for n in NODES},
                called={n: frozenset(hosts[n].address(f) for f in families) for n in NODES},
                subnets={
                    name: frozenset(each.network for each in file.subnets.values())
                    for name, file in lab.subnet_files().items()
                },
                pod_networks=frozenset(ip_network(text) for text in POD_NETWORKS.values()),
            )
            with probing(list(_doors(places, kernel))) as prober:
                yield Site(lab, places, kernel, prober)
        finally:
            pods.remove(lab)


def _doors(places: Places, namespaces: Mapping[str, str]) -> Iterable[Door]:
    protocols = tuple(p for p in Protocol if p is not Protocol.SCTP or has_sctp())
    for name, addresses in (*places.pods.items(), *places.called.items()):
        yield Door(namespaces[name], addresses, _PORTS, protocols)
