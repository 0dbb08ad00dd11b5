"""Conformance cases through an API server: the node's table is what the engine makes of the case.

Every case that has what only Kubernetes tells of (pods in the host's network,
finished and deleted ones, ports by name), and some of the others.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from overlay.agent.policy_world import Selecting, WorldMaker
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.policy_view import PolicyView
from overlay.policy.network.compile import compile_policies
from overlay.policy.network.table import PolicyRuleset
from overlay.store.kube_client import KubeClient
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_policies import KubePolicySource
from overlay.store.kube_watch import Pace
from tests.etcd.support import eventually
from tests.kube.api_server import ApiServer
from tests.kube.objects import Object, Place
from tests.netpol.casebook import NODE_OF, Case, Moment, cases, imagined
from tests.netpol.conformance import world_of
from tests.netpol.statements import NODES
from tests.netpol.through_agents import is_for_agents

_PLACES: Final = imagined()
_QUICK: Final = Pace(page=4, idle_s=5.0, backoff_s=(0.02, 0.1))
_EVERY: Final = 12  # of the cases that etcd's agents are asked


def chosen() -> list[Case]:
    rest = [case for case in cases() if is_for_agents(case)]
    return [case for case in cases() if not is_for_agents(case)] + rest[::_EVERY]


@dataclass
class Cluster:
    """An API server's objects, brought from moment to moment, and what three nodes see of it."""

    api: ApiServer
    views: dict[str, PolicyView] = field(default_factory=dict)
    _known: dict[tuple[Place, str], Object] = field(default_factory=dict)

    def enter(self, moment: Moment) -> None:
        """Write what differs."""
        wanted: dict[tuple[Place, str], Object] = {}
        for name, labels in moment.namespace_labels.items():
            meta = {"name": name, "labels": dict(labels)}
            wanted[Place("namespaces"), name] = {"metadata": meta}
        for pod in moment.pods(_PLACES).values():
            wanted[Place("pods", pod.namespace), pod.name] = _object(pod)
        for document in moment.objects(_PLACES):
            meta = document["metadata"]
            wanted[Place("networkpolicies", meta["namespace"]), meta["name"]] = document
        for place, name in self._known.keys() - wanted.keys():
            self.api.objects.delete(place, name)
        for (place, name), found in wanted.items():
            if (place, name) not in self._known:
                self.api.objects.create(place, found)
            elif self._known[place, name] != found:
                old = self.api.objects.get(place, name)["metadata"]
                now = {**found, "metadata": {**old, **found["metadata"]}}
                self.api.objects.replace(place, name, now, None)
        self._known = wanted

    def table(self, node: str, moment: Moment) -> PolicyRuleset | None:
        """Return the table that the agent of ``node`` would make of what it saw last."""
        view = self.views.get(node)
        if view is None:
            return None
        maker = WorldMaker(node)
        held = [_attachment(pod) for pod in moment.pods(_PLACES).values() if pod.node == node]
        attached = [each for each in held if each is not None]
        world = maker.make(view, attached, {}, Selecting(view), {})
        world = type(world)(world.pods, world.namespaces, world.policies, _PLACES.nodes)
        return compile_policies(world, node, unknown=maker.unknown)


def _object(pod: Any) -> Object:
    ports = [
        {"name": p.name, "containerPort": p.number, "protocol": p.protocol.name} for p in pod.ports
    ]
    return {
        "metadata": {"name": pod.name, "labels": dict(pod.labels)},
        "spec": {
            "nodeName": pod.node,
            "hostNetwork": pod.is_on_host,
            "containers": [{"name": "c", "ports": ports}],
        },
        "status": {
            "phase": "Succeeded" if pod.is_finished else "Running",
            "podIPs": [{"ip": str(address)} for address in sorted(pod.addresses, key=str)],
        },
    }


def _attachment(pod: Any) -> Attachment | None:
    if pod.is_on_host:
        return None
    arguments = {"K8S_POD_NAMESPACE": pod.namespace, "K8S_POD_NAME": pod.name}
    key = AttachmentKey("net", f"{pod.namespace}-{pod.name}", "eth0")
    return Attachment(key, "/x", tuple(pod.addresses), arguments=arguments)


@pytest.fixture
def cluster(api: ApiServer, access: KubeAccess) -> Iterator[Cluster]:
    found, stop, client = Cluster(api), threading.Event(), KubeClient(access)

    def follow(node: str) -> None:
        source = KubePolicySource(client, node, cluster=False, pace=_QUICK)
        source.watch(lambda view: found.views.update({node: view}), lambda _: None, stop)

    threads = [threading.Thread(target=follow, args=(node,)) for node in NODES]
    for thread in threads:
        thread.start()
    yield found
    stop.set()
    for thread in threads:
        thread.join(20)
    client.close()
    assert set(NODE_OF.values()) == set(NODES)


def test_every_node_makes_of_a_cluster_what_the_engine_makes_of_the_case(cluster: Cluster) -> None:
    asked = 0
    for case in chosen():
        for moment in case.moments:
            cluster.enter(moment)
            world = world_of(moment, _PLACES)
            for node in NODES:
                wanted = compile_policies(world, node)
                eventually(
                    lambda node=node, moment=moment, wanted=wanted: (  # type: ignore[misc]  # defaults
                        cluster.table(node, moment) == wanted
                    ),
                    20.0,
                )
                asked += 1
    assert asked > 100
