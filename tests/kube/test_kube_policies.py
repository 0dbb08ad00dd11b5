"""Policies, namespaces and pods of a cluster as views: whole, lean, and never half."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

import pytest

from overlay.model.netpol import NAME_LABEL, NamedPort, Pod, Protocol
from overlay.model.policy_view import PolicyView
from overlay.store.base import PermissionMissingError, StoreError, StoreUnavailableError
from overlay.store.kube_client import KubeClient
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_policies import KubePolicySource
from overlay.store.kube_watch import Pace
from tests.etcd.support import eventually
from tests.kube.api_server import ApiServer, Fault
from tests.kube.objects import Object, Place

QUICK: Final = Pace(page=3, idle_s=5.0, backoff_s=(0.05, 0.2))
POLICIES: Final = Place("networkpolicies", "shop")
PODS: Final = Place("pods", "shop")
SPACES: Final = Place("namespaces")
CLUSTER: Final = Place("clusternetworkpolicies")


def pod(name: str, node: str = "node-2", address: str = "10.244.2.7", **labels: str) -> Object:
    return {
        "metadata": {"name": name, "labels": {"app": name, "pod-template-hash": "5d9", **labels}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def policy(name: str, selector: dict[str, str], peer: dict[str, str] | None = None) -> Object:
    peers = [{"podSelector": {"matchLabels": peer}}] if peer is not None else []
    ingress = [{"from": peers}] if peers else []
    spec = {"podSelector": {"matchLabels": selector}, "ingress": ingress}
    return {"metadata": {"name": name}, "spec": spec}


@dataclass
class Seen:
    views: list[PolicyView] = field(default_factory=list)
    troubles: list[StoreError | None] = field(default_factory=list)

    @property
    def last(self) -> PolicyView:
        return self.views[-1]

    def wait(self, condition: Callable[[PolicyView], bool]) -> PolicyView:
        eventually(lambda: bool(self.views) and condition(self.last), 20.0)
        return self.last

    def labels(self, name: str) -> dict[str, str] | None:
        found = self.last.pods.get(("shop", name)) if self.views else None
        return dict(found.labels) if found is not None else None


@contextmanager
def watching(access: KubeAccess, *, cluster: bool = False) -> Iterator[Seen]:
    seen, stop, client = Seen(), threading.Event(), KubeClient(access)
    source = KubePolicySource(client, "node-1", cluster=cluster, pace=QUICK)
    thread = threading.Thread(
        target=source.watch, args=(seen.views.append, seen.troubles.append, stop)
    )
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(20.0)
        client.close()
    assert not thread.is_alive()


@pytest.fixture
def shop(api: ApiServer) -> ApiServer:
    """Return a namespace with a pod here and two elsewhere."""
    api.objects.create(SPACES, {"metadata": {"name": "shop", "labels": {"team": "a"}}})
    api.objects.create(PODS, pod("here", "node-1", "10.244.1.5", tier="front"))
    api.objects.create(PODS, pod("there", address="10.244.2.5", tier="front"))
    api.objects.create(PODS, pod("db", address="10.244.2.6", tier="back"))
    return api


def test_own_pods_are_whole_and_others_are_asked_for_only_once_there_is_a_policy(
    shop: ApiServer, access: KubeAccess
) -> None:
    with watching(access) as seen:
        view = seen.wait(lambda view: bool(view.pods))
        assert set(view.pods) == {("shop", "here")}
        assert view.pods["shop", "here"] == Pod(
            "shop",
            "here",
            frozenset({ip_address("10.244.1.5")}),
            {"app": "here", "pod-template-hash": "5d9", "tier": "front"},
            "node-1",
            (NamedPort("http", 8080, Protocol.TCP),),
            uid=shop.objects.get(PODS, "here")["metadata"]["uid"],
        )
        assert view.namespaces == {"shop": {"team": "a", NAME_LABEL: "shop"}}
        assert all("!=" not in r.query.get("fieldSelector", "") for r in shop.asked("list", "pods"))
        shop.objects.create(POLICIES, policy("p", {"app": "here"}, {"tier": "front"}))
        view = seen.wait(lambda view: bool(view.policies))
        assert set(view.pods) == {("shop", "here"), ("shop", "there"), ("shop", "db")}
        assert seen.labels("there") == {"app": "there", "tier": "front"}
        assert view.pods["shop", "db"].ports == ()
        assert view.knows_pods


def test_pods_stay_the_same_object_until_one_changes(shop: ApiServer, access: KubeAccess) -> None:
    shop.objects.create(POLICIES, policy("p", {"app": "here"}, {"tier": "front"}))
    with watching(access) as seen:
        before = seen.wait(lambda view: len(view.pods) == 3)
        shop.objects.create(SPACES, {"metadata": {"name": "other"}})
        after = seen.wait(lambda view: "other" in view.namespaces)
        assert after.pods is before.pods
        shop.objects.create(PODS, pod("new", "node-1", "10.244.1.6"))
        assert len(seen.wait(lambda view: len(view.pods) == 4).pods) == 4
        shop.objects.create(PODS, pod("far", address="10.244.2.7", tier="front"))
        seen.wait(lambda view: len(view.pods) == 5)
        assert len(before.pods) == 3


def test_a_policy_waits_until_pods_have_the_labels_that_it_asks_for(
    shop: ApiServer, access: KubeAccess
) -> None:
    shop.objects.create(POLICIES, policy("p", {}, {"tier": "front"}))
    with watching(access) as seen:
        seen.wait(lambda view: len(view.pods) == 3)
        assert seen.labels("there") == {"tier": "front"}
        excluding = policy("q", {})
        excluding["spec"]["ingress"] = [
            {
                "from": [
                    {"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}
                ]
            }
        ]
        shop.objects.create(POLICIES, excluding)
        seen.wait(lambda view: len(view.policies) == 2)
        assert seen.labels("there") == {"app": "there", "tier": "front"}
        for view in seen.views:
            if ("shop", "q") in view.policies:
                assert "app" in view.pods["shop", "there"].labels, "a view without the label"


def test_named_ports_of_others_are_kept_where_a_rule_names_one(
    shop: ApiServer, access: KubeAccess
) -> None:
    named = policy("p", {})
    named["spec"] |= {"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]}
    shop.objects.create(POLICIES, named)
    with watching(access) as seen:
        view = seen.wait(lambda view: len(view.pods) == 3)
        assert view.pods["shop", "db"].ports == (NamedPort("http", 8080, Protocol.TCP),)


def test_finished_and_deleted_pods_leave_at_once(shop: ApiServer, access: KubeAccess) -> None:
    shop.objects.create(POLICIES, policy("p", {}))
    with watching(access) as seen:
        seen.wait(lambda view: len(view.pods) == 3)
        shop.objects.replace(
            PODS, "there", _with_phase(shop.objects.get(PODS, "there"), "Succeeded"), None
        )
        shop.objects.delete(PODS, "db")
        seen.wait(lambda view: set(view.pods) == {("shop", "here")})
        shop.objects.replace(
            PODS, "here", _with_phase(shop.objects.get(PODS, "here"), "Failed"), None
        )
        seen.wait(lambda view: view.pods["shop", "here"].is_finished)


def _with_phase(found: Object, phase: str) -> Object:
    return {**found, "status": {**found["status"], "phase": phase}}


def test_what_does_not_concern_policies_makes_no_view(shop: ApiServer, access: KubeAccess) -> None:
    shop.objects.create(POLICIES, policy("p", {}))
    with watching(access) as seen:
        seen.wait(lambda view: len(view.pods) == 3)
        before = len(seen.views)
        found = shop.objects.get(PODS, "there")
        beat = {**found, "status": {**found["status"], "conditions": [{"type": "Ready"}]}}
        shop.objects.replace(PODS, "there", beat, None)
        shop.objects.create(PODS, pod("last", tier="back"))
        seen.wait(lambda view: ("shop", "last") in view.pods)
        assert len(seen.views) == before + 1


def test_static_pods_have_the_uid_that_runtimes_are_told(
    api: ApiServer, access: KubeAccess
) -> None:
    static = pod("static", "node-1")
    static["metadata"]["annotations"] = {"kubernetes.io/config.hash": "3f0c"}
    api.objects.create(PODS, static)
    with watching(access) as seen:
        view = seen.wait(lambda view: bool(view.pods))
        assert view.pods["shop", "static"].uid == "3f0c"


def test_nothing_is_delivered_before_everything_was_listed(
    shop: ApiServer, access: KubeAccess
) -> None:
    """With the pods missing a rule for some would be a rule for nobody."""
    shop.objects.create(POLICIES, policy("p", {}, {"tier": "front"}))
    shop.forbidden.add(("list", "pods"))
    with watching(access) as seen:
        eventually(lambda: any(isinstance(t, PermissionMissingError) for t in seen.troubles), 20.0)
        assert seen.views == []
        shop.forbidden.clear()
        assert len(seen.wait(lambda view: bool(view.policies)).pods) == 3
        eventually(lambda: seen.troubles[-1] is None, 20.0)


def test_objects_that_cannot_be_read_are_named_and_count_as_they_last_were(
    shop: ApiServer, access: KubeAccess
) -> None:
    shop.objects.create(POLICIES, policy("p", {"app": "here"}))
    with watching(access) as seen:
        first = seen.wait(lambda view: bool(view.policies))
        found = shop.objects.get(POLICIES, "p")
        bad = {**found, "spec": {**found["spec"], "ingress": "every"}}
        shop.objects.replace(POLICIES, "p", bad, None)
        view = seen.wait(lambda view: bool(view.skipped))
        assert view.policies == first.policies
        assert view.skipped[0].key == "networkpolicies shop/p"
        assert "spec.ingress" in view.skipped[0].reason
        shop.objects.replace(POLICIES, "p", found, None)
        seen.wait(lambda view: not view.skipped)


def test_a_policy_that_was_never_readable_isolates_without_its_rules(
    shop: ApiServer, access: KubeAccess
) -> None:
    newer = policy("p", {"app": "here"})
    newer["spec"]["ingress"] = [{"from": [{"galaxySelector": {}}]}]
    shop.objects.create(POLICIES, newer)
    with watching(access) as seen:
        view = seen.wait(lambda view: bool(view.skipped))
        made = view.policies["shop", "p"]
        assert made.ingress == ()
        assert made.pods.selects({"app": "here"})
        assert not made.pods.selects({"app": "there"})
        worse = shop.objects.get(POLICIES, "p")
        worse = {**worse, "spec": {**worse["spec"], "podSelector": "all"}}
        shop.objects.replace(POLICIES, "p", worse, None)
        seen.wait(lambda view: view.policies["shop", "p"].pods.selects({"app": "there"}))


def test_a_namespace_is_audited_by_its_annotation_and_by_no_other_word(
    api: ApiServer, access: KubeAccess
) -> None:
    for name, word in (("a", "true"), ("b", "yes")):
        noted = {"overlay/policy-audit": word}
        api.objects.create(SPACES, {"metadata": {"name": name, "annotations": noted}})
    with watching(access) as seen:
        view = seen.wait(lambda view: len(view.namespaces) == 2)
        assert view.audited == {"a"}


def test_a_cluster_without_cluster_policies_has_none_and_says_so(
    shop: ApiServer, access: KubeAccess
) -> None:
    shop.forbidden.add(("list", "clusternetworkpolicies"))
    with watching(access, cluster=True) as seen:
        view = seen.wait(lambda view: bool(view.skipped))
        assert view.cluster_policies == {}
        assert view.skipped[0].key == "clusternetworkpolicies"
        shop.forbidden.clear()
        shop.objects.create(CLUSTER, _cluster_policy())
        view = seen.wait(lambda view: bool(view.cluster_policies))
        assert view.skipped == ()
        assert ("shop", "there") in view.pods
        worker = {"metadata": {"name": "node-2", "labels": {"zone": "b"}}}
        shop.objects.create(Place("nodes"), worker)
        view = seen.wait(lambda view: bool(view.node_labels))
        assert view.node_labels == {"node-2": {"zone": "b"}}


def _cluster_policy() -> dict[str, Any]:
    return {
        "metadata": {"name": "c"},
        "spec": {
            "tier": "Admin",
            "priority": 5,
            "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        },
    }


@pytest.mark.parametrize("kind", ["500", "reset", "broken"])
def test_faults_are_told_and_outlived(shop: ApiServer, access: KubeAccess, kind: str) -> None:
    shop.objects.create(POLICIES, policy("p", {}))
    with watching(access) as seen:
        seen.wait(lambda view: len(view.pods) == 3)
        shop.faults += [Fault(kind, "watch", times=6), Fault("410", "watch", times=2)]
        shop.stop()
        eventually(lambda: any(isinstance(t, StoreUnavailableError) for t in seen.troubles), 20.0)
        shop.objects.delete(PODS, "there")
        shop.objects.compact()
        shop.start()
        view = seen.wait(lambda view: ("shop", "there") not in view.pods)
        assert len(view.policies) == 1
        eventually(lambda: seen.troubles[-1] is None, 20.0)


def test_one_pod_is_asked_for_by_its_name(shop: ApiServer, access: KubeAccess) -> None:
    client = KubeClient(access)
    source = KubePolicySource(client, "node-1", cluster=False)
    found = source.pod(("shop", "there"))
    assert found is not None
    assert found.labels["pod-template-hash"] == "5d9"
    assert source.pod(("shop", "nobody")) is None
    shop.stop()
    with pytest.raises(StoreUnavailableError):
        source.pod(("shop", "there"))
    client.close()


def test_a_view_has_all_pods_whole(shop: ApiServer, access: KubeAccess) -> None:
    shop.objects.create(POLICIES, policy("p", {"app": "here"}))
    client = KubeClient(access)
    view = KubePolicySource(client, "node-1", cluster=True, pace=QUICK).view()
    client.close()
    assert {key: len(found.labels) for key, found in view.pods.items()} == {
        ("shop", "here"): 3,
        ("shop", "there"): 3,
        ("shop", "db"): 3,
    }
    assert set(view.policies) == {("shop", "p")}
    assert view.namespaces["shop"]["team"] == "a"
