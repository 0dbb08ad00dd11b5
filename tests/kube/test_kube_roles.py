"""The roles in the manifests allow what the store asks of the API, and nothing beyond it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from overlay.model.policy_view import PolicyView
from tests.etcd.support import CONFIG, attributes, claim, eventually, watched
from tests.kube.api_server import ApiServer, Request
from tests.kube.cluster import PlantedCluster
from tests.kube.objects import Place

_MANIFEST: Final = Path(__file__).parents[2] / "manifests/kubernetes/overlays/kubernetes/rbac.yaml"
Right = tuple[str, str, str]  # role's kind and resource; verb; the one name that it is for


def allowed() -> Iterator[Right]:
    """Yield the rights that the manifest gives."""
    for role in yaml.safe_load_all(_MANIFEST.read_text()):
        for rule in role.get("rules", ()):
            names: list[str] = rule.get("resourceNames", [""])
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield from ((f"{role['kind']} {resource}", verb, name) for name in names)


def asked(request: Request) -> Right:
    """Return the right that a request takes; a listing of one name is for that name."""
    kind = "Role" if request.place.resource == "secrets" else "ClusterRole"
    selected = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
    name = (request.name or selected) if request.place.resource == "secrets" else ""
    return f"{kind} {request.resource}", request.verb, name or ""


@pytest.fixture
def cluster(api: ApiServer, tmp_path: Path) -> Iterator[PlantedCluster]:
    store = PlantedCluster(api, tmp_path)
    store.config_file.write_text(CONFIG)
    store.add_node(1, "10.244.1.0/24")
    yield store
    store.close()


def test_roles_allow_what_is_asked_and_no_more(cluster: PlantedCluster) -> None:
    """A life of an agent: it claims, renews, announces, makes the key, rotates and follows."""
    with watched(cluster) as seen:
        seen.wait(lambda view: view.config is not None)
        own = cluster.acquire(claim(1))
        assert cluster.make_fabric_key()
        seen.wait(lambda view: view.fabric_keys.newest is not None)
        eventually(lambda: bool(cluster.api.asked("watch", "secrets")))
    cluster.renew(own, attributes(1), 60)
    cluster.set_network_available()
    cluster.rotate_fabric_key()
    _follow_policies(cluster)
    assert {asked(request) for request in cluster.api.requests} == set(allowed())


def _follow_policies(cluster: PlantedCluster) -> None:
    """Do what the agent does with --policy-admin-tier, a policy among the objects."""
    policy = {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}}
    cluster.api.objects.create(Place("networkpolicies", "shop"), policy)
    views: list[PolicyView] = []
    stop = threading.Event()
    source = cluster.policies(cluster=True)
    follow = threading.Thread(target=source.watch, args=(views.append, lambda _: None, stop))
    follow.start()
    # Own pods, and those of others.
    eventually(lambda: bool(views) and len(cluster.api.asked("watch", "pods")) > 1)
    for resource in ("networkpolicies", "namespaces", "clusternetworkpolicies"):
        eventually(lambda resource=resource: bool(cluster.api.asked("watch", resource)))  # type: ignore[misc]  # a default
    source.pod(("shop", "web"))
    stop.set()
    follow.join(20)
    assert not follow.is_alive()


def test_each_role_is_bound_to_the_agents_account() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(_MANIFEST.read_text()))
    roles = {(d["kind"], d["metadata"]["name"]) for d in documents if "rules" in d}
    bound = {
        (d["roleRef"]["kind"], d["roleRef"]["name"])
        for d in documents
        if [s["name"] for s in d.get("subjects", ())] == ["overlayd"]
    }
    assert bound == roles == {("ClusterRole", "overlayd"), ("Role", "overlayd")}
