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
from overlay.lab.pods import Pod as LabPod
from overlay.lab.topology import POD_NETWORKS, LabOptions
from overlay.model.address import Family
from overlay.model.netpol import Protocol
from tests.netpol.casebook import Moment, Places, flow_of
from tests.netpol.prober import Door, Prober, Question, has_sctp, probing
from tests.netpol.statements import NODES, PODS, Probe

_PORTS = (80, 81)


@dataclass(frozen=True, slots=True)
class Site:
    """A lab with its pods' names, and somebody who listens in each of them."""

    lab: Lab
    places: Places
    namespaces: Mapping[str, str]  # of the kernel, by the names of the tables
    pods: Mapping[str, LabPod]
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
    with running(LabOptions(name=name, nodes=3, pods=3, families=families)) as lab:
        found = {_named(pod): pod for pod in lab.pods()}
        hosts = {node.name: node for node in lab.topology.nodes}
        namespaces = {pod: found[pod].namespace for pod in PODS} | {
            node: hosts[node].namespace for node in NODES
        }
        places = Places(
            pods={pod: frozenset(found[pod].addresses.values()) for pod in PODS},
            nodes={n: frozenset(netns.inside(namespaces[n], netns.addresses)) for n in NODES},
            called={n: frozenset(hosts[n].address(f) for f in families) for n in NODES},
            subnets={
                name: frozenset(each.network for each in file.subnets.values())
                for name, file in lab.subnet_files().items()
            },
            pod_networks=frozenset(ip_network(text) for text in POD_NETWORKS.values()),
        )
        with probing(list(_doors(places, namespaces))) as prober:
            yield Site(lab, places, namespaces, found, prober)


def _named(pod: LabPod) -> str:
    """Return a table's name for the lab's ``n2-p1``."""
    return f"{'xyz'[int(pod.name[-1]) - 1]}/{'abc'[NODES.index(pod.node)]}"


def _doors(places: Places, namespaces: Mapping[str, str]) -> Iterable[Door]:
    protocols = tuple(p for p in Protocol if p is not Protocol.SCTP or has_sctp())
    for name, addresses in (*places.pods.items(), *places.called.items()):
        yield Door(namespaces[name], addresses, _PORTS, protocols)
