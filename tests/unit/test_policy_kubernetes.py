"""Pods that an API tells of: labels from there, asked for in time, nobody's where it is silent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from overlay.agent.attachments import Attachments
from overlay.agent.policy_enforcer import PolicyEnforcer, PolicyNotInForceError, PolicyOptions
from overlay.agent.policy_pods import told_pods
from overlay.agent.status import Status
from overlay.ipam.pool import Demand
from overlay.kernel.nft import NftError
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.netpol import NetworkPolicy, Operator, Pod, PodKey, Requirement, Selector
from overlay.model.policy_view import PolicyView
from overlay.model.subnet import parse_subnet
from overlay.policy.network.table import PolicyRuleset
from overlay.store.base import StoreUnavailableError
from tests.etcd.support import eventually
from tests.unit.test_policy_agent import Table

SUBNET = parse_subnet("10.244.1.0/24")
WEB = Selector((Requirement("app", Operator.IN, frozenset({"web"})),))
DENY = NetworkPolicy("shop", "deny", WEB, ingress=())
DENYING = PolicyView(1, policies={DENY.key: DENY}, knows_pods=True)
ELSEWHERE = NetworkPolicy("bank", "deny", ingress=())


def pod(name: str, uid: str, app: str = "web", node: str = "n1", **more: Any) -> Pod:
    return Pod("shop", name, frozenset(), {"app": app}, node, uid=uid, **more)


def viewing(*pods: Pod, policy: NetworkPolicy = DENY) -> PolicyView:
    return PolicyView(
        2, {policy.key: policy}, pods={each.key: each for each in pods}, knows_pods=True
    )


class KubeTable(Table):
    """A table in memory that tells who judges a pod."""

    def chain(self, attachment: Attachment) -> str:
        """Return the chain that judges what comes to the pod; empty where none does."""
        (address,) = attachment.addresses
        to = self.held.maps["ov_to4"].elements if self.held is not None and self.held.maps else {}
        return to.get(str(address), "")


class Node:
    """One node whose pods an API tells of; ``api`` is what that answers for one pod."""

    def __init__(self, place: Path) -> None:
        self.attachments = Attachments(place)
        self.status = Status()
        self.table = KubeTable()
        self.api: dict[PodKey, Pod] = {}
        self.asked: list[PodKey] = []
        self.is_away = False
        self.enforcer = PolicyEnforcer(
            "n1", self.attachments, self.status, self.table, PolicyOptions(), pod=self._pod
        )

    def _pod(self, key: PodKey) -> Pod | None:
        self.asked.append(key)
        if self.is_away:
            raise StoreUnavailableError("the API server is away")
        return self.api.get(key)

    def add(self, name: str, uid: str = "", container: str = "") -> Attachment:
        key = AttachmentKey("net", container or f"{name}-{uid}", "eth0")
        arguments = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": name, "K8S_POD_UID": uid}

        def make(addresses: Any) -> Attachment:
            return Attachment(key, "/x", addresses, "opod", arguments=arguments)

        return self.attachments.add(SUBNET, Demand((), ()), key, make)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self.enforcer.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            self.enforcer.wake()
            thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path / "attachments")
    with found.running():
        yield found


def test_a_pod_of_the_view_is_judged_by_the_labels_that_the_api_has(node: Node) -> None:
    node.enforcer.put(viewing(pod("a", "1"), pod("b", "2", app="db")))
    web, database = node.add("a", "1"), node.add("b", "2")
    node.enforcer.admit(web)
    node.enforcer.admit(database)
    eventually(lambda: node.table.chain(web).startswith("ov_c_"), 10)
    assert node.table.chain(database) == ""
    assert node.asked == []


def test_a_pod_that_starts_before_its_view_comes_is_asked_for(node: Node) -> None:
    node.enforcer.put(DENYING)
    node.api = {("shop", "a"): pod("a", "1")}
    web = node.add("a", "1")
    node.enforcer.admit(web)
    assert node.table.chain(web).startswith("ov_c_")
    assert node.asked == [("shop", "a")]


def test_one_that_nobody_knows_reaches_nobody_until_somebody_tells(node: Node) -> None:
    node.enforcer.put(DENYING)
    strange = node.add("a", "1")
    node.enforcer.admit(strange)
    assert node.table.chain(strange) == "ov_unknown"
    node.enforcer.put(viewing(pod("a", "1", app="db")))
    eventually(lambda: node.table.chain(strange) == "", 10)


def test_the_pod_before_it_of_the_same_name_says_nothing_of_it(node: Node) -> None:
    """One of a StatefulSet is made anew: the view may still have the old one's labels."""
    node.enforcer.put(viewing(pod("a", "old", app="db")))
    node.api = {("shop", "a"): pod("a", "new")}
    old, new = node.add("a", "old"), node.add("a", "new")
    node.enforcer.admit(new)
    assert node.table.chain(new).startswith("ov_c_")
    assert node.table.chain(old) == "ov_unknown"
    node.enforcer.put(viewing(pod("a", "new", app="db")))
    eventually(lambda: node.table.chain(new) == "", 10)
    assert node.table.chain(old) == "ov_unknown"


def test_an_answer_counts_until_the_view_has_news_of_the_pod(node: Node) -> None:
    node.enforcer.put(DENYING)
    node.api = {("shop", "a"): pod("a", "1")}
    web = node.add("a", "1")
    node.enforcer.admit(web)
    node.enforcer.put(viewing(pod("b", "2")))
    node.enforcer.admit(node.add("b", "2"))
    assert node.table.chain(web).startswith("ov_c_")
    node.enforcer.put(viewing(pod("a", "1", app="db"), pod("b", "2")))
    eventually(lambda: node.table.chain(web) == "", 10)
    assert node.asked == [("shop", "a")]


def test_with_the_api_away_a_pod_that_policies_may_select_does_not_start(node: Node) -> None:
    node.is_away = True
    node.enforcer.put(DENYING)
    with pytest.raises(PolicyNotInForceError, match="pod shop/a cannot be known: the API server"):
        node.enforcer.admit(node.add("a", "1"))


def test_with_the_api_away_pods_of_namespaces_without_policies_start(node: Node) -> None:
    node.is_away = True
    node.enforcer.put(viewing(policy=ELSEWHERE))
    free = node.add("a", "1")
    node.enforcer.admit(free)
    assert node.asked == []
    assert node.table.chain(free) == ""


def test_an_account_that_may_not_read_policies_has_pods_without_them(node: Node) -> None:
    node.enforcer.lack()
    node.enforcer.admit(node.add("a", "1"))
    assert node.table.held is None


def test_a_permission_that_is_taken_away_later_opens_nothing(node: Node) -> None:
    node.enforcer.put(viewing(pod("a", "1")))
    web = node.add("a", "1")
    node.enforcer.admit(web)
    node.enforcer.lack()
    other = node.add("b", "2")
    node.api = {("shop", "b"): pod("b", "2")}
    node.enforcer.admit(other)
    assert node.table.chain(web).startswith("ov_c_")
    assert node.table.chain(other).startswith("ov_c_")


def test_finished_pods_are_nobody_and_pods_of_no_kubelet_are_themselves() -> None:
    def attached(address: str, **arguments: str) -> Attachment:
        key = AttachmentKey("net", f"c{address}", "eth0")
        return Attachment(key, "/x", (ip_address(address),), arguments=arguments)

    done = attached("10.244.1.2", K8S_POD_NAMESPACE="shop", K8S_POD_NAME="done")
    moved = attached("10.244.1.3", K8S_POD_NAMESPACE="shop", K8S_POD_NAME="moved")
    podman = attached("10.244.1.4")
    api = {
        ("shop", "done"): pod("done", "1", is_finished=True),
        ("shop", "moved"): pod("moved", "2", node="n2"),
    }
    pods, unknown = told_pods([done, moved, podman], api.get, "n1")
    assert set(pods) == {("default", "c10.244.1.4")}
    assert unknown == {("shop", "moved"): frozenset(moved.addresses)}


def test_nft_errors_are_told_in_kubernetes_too(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: PolicyRuleset) -> bool:
        raise NftError("no room")

    monkeypatch.setattr(node.table, "apply", refuse)
    node.enforcer.put(viewing(pod("a", "1")))
    with pytest.raises(PolicyNotInForceError, match="no room"):
        node.enforcer.admit(node.add("a", "1"))
