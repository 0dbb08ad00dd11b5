"""What every store of policies promises, asked of the one in memory and of a real etcd."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from overlay.lab.etcd import EmbeddedEtcd
from overlay.model.errors import UsageError
from overlay.model.netpol import (
    EVERYTHING,
    NAME_LABEL,
    NamedPort,
    NetworkPolicy,
    Operator,
    Pod,
    PortMatch,
    Requirement,
    Rule,
    Selector,
)
from overlay.model.policy_view import PolicyView
from overlay.policy.network.fields import PolicyFormatError
from overlay.store.base import StoreError
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig
from overlay.store.policy_etcd import MOST, EtcdPolicyStore
from overlay.store.policy_memory import MemoryPolicyStore
from overlay.store.policy_source import NoSuchObjectError, PolicyStore
from tests.etcd.support import eventually, raw_client

WEB = Pod(
    "shop",
    "web",
    frozenset({ip_address("10.244.1.2"), ip_address("fd00::2")}),
    {"app": "web"},
    "n1",
    (NamedPort("http", 8080),),
)

SHUT = NetworkPolicy("shop", "a", EVERYTHING, (), ())
A_IS_B = Selector((Requirement("a", Operator.IN, frozenset({"b"})),))


def policy(name: str, namespace: str | None = "shop", **spec: Any) -> dict[str, Any]:
    space = {"namespace": namespace} if namespace else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, **space},
        "spec": {"podSelector": {}, **spec},
    }


def space(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **metadata}}


def opened(etcd: EmbeddedEtcd, prefix: str) -> EtcdPolicyStore:
    return EtcdLeaseStore(EtcdConfig((etcd.endpoint,), prefix)).policies()


@dataclass
class Subject:
    """A store, and ways to it that this program has not."""

    store: PolicyStore
    put: Callable[[str, bytes | None], None]
    lease: Callable[[], int]
    end: Callable[[int], None]


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "memory":
        memory = MemoryPolicyStore()
        numbers = iter(range(1, 100))
        yield Subject(memory, memory.put, lambda: next(numbers), memory.end_lease)
        return
    etcd: EmbeddedEtcd = request.getfixturevalue("etcd")
    prefix: str = request.getfixturevalue("prefix")
    raw = raw_client(etcd.endpoint)

    def put(name: str, value: bytes | None) -> None:
        key = f"{prefix}/policies/{name}"
        raw.delete(key) if value is None else raw.put(key, value)

    store = opened(etcd, prefix)
    yield Subject(store, put, lambda: int(raw.lease(60).id), lambda n: raw.revoke_lease(n))
    store.close()
    raw.close()


@dataclass
class Seen:
    views: list[PolicyView] = field(default_factory=list)
    troubles: list[StoreError | None] = field(default_factory=list)

    def wait(self, condition: Callable[[PolicyView], bool]) -> PolicyView:
        eventually(lambda: bool(self.views) and condition(self.views[-1]), 20)
        return self.views[-1]


@contextmanager
def watched(store: PolicyStore) -> Iterator[Seen]:
    seen, stop = Seen(), threading.Event()
    run = threading.Thread(target=store.watch, args=(seen.views.append, seen.troubles.append, stop))
    run.start()
    try:
        yield seen
    finally:
        stop.set()
        run.join(20)
    assert not run.is_alive()


def test_what_is_applied_is_in_the_view_and_listed_as_written(subject: Subject) -> None:
    documents = [policy("deny", None, policyTypes=["Egress"]), space("shop", labels={"tier": "a"})]
    said = subject.store.apply(documents)
    assert said == ["NetworkPolicy default/deny", "Namespace shop"]
    view = subject.store.view()
    assert view.policies["default", "deny"].egress == ()
    assert view.policies["default", "deny"].ingress is None
    assert view.namespaces == {"shop": {"tier": "a", NAME_LABEL: "shop"}}
    kept = {d["kind"]: d for d in subject.store.documents()}
    assert kept["NetworkPolicy"]["metadata"] == {"name": "deny", "namespace": "default"}
    assert subject.store.apply([{"kind": "List", "items": documents}, None]) == said


def test_one_refused_object_leaves_all_as_it_was(subject: Subject) -> None:
    subject.store.apply([policy("kept")])
    before = subject.store.view()
    bad = policy("bad", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}])
    with pytest.raises(PolicyFormatError, match=r"shop/bad: spec.ingress\[0\].from\[0\].ipBlock.c"):
        subject.store.apply([policy("kept", policyTypes=["Egress"]), bad])
    with pytest.raises(PolicyFormatError, match="kind 'Service'"):
        subject.store.apply([{"kind": "Service"}])
    assert subject.store.view() == before


def test_deleting_what_is_not_there_is_an_error(subject: Subject) -> None:
    subject.store.apply([policy("deny"), space("shop")])
    subject.store.delete("NetworkPolicy", "shop", "deny")
    subject.store.delete("Namespace", "", "shop")
    assert subject.store.documents() == []
    with pytest.raises(NoSuchObjectError, match="shop/deny"):
        subject.store.delete("NetworkPolicy", "shop", "deny")


def test_operator_labels_stand_over_those_of_the_pod_and_before_its_start(
    subject: Subject,
) -> None:
    store = subject.store
    assert store.label(WEB.key, {"app": "shut", "team": "a"}) == {"app": "shut", "team": "a"}
    store.publish("id-1", [WEB], 0)
    pod = store.view().pods[WEB.key]
    assert pod.labels == {"app": "shut", "team": "a"}
    assert (pod.addresses, pod.node, pod.ports) == (WEB.addresses, "n1", WEB.ports)
    assert store.label(WEB.key, {"app": None, "team": None}) == {}
    assert store.view().pods[WEB.key].labels == {"app": "web"}
    with pytest.raises(PolicyFormatError, match="shop/web"):
        store.label(WEB.key, {"app": 'a"; drop'})


def test_pods_leave_with_their_nodes_lease_and_follow_it_to_a_new_one(subject: Subject) -> None:
    store, first, second = subject.store, subject.lease(), subject.lease()
    other = Pod("shop", "db", frozenset({ip_address("10.244.1.3")}))
    store.publish("id-1", [WEB, other], first)
    assert set(store.view().pods) == {WEB.key, other.key}
    store.publish("id-1", [WEB], second)
    subject.end(first)
    assert set(store.view().pods) == {WEB.key}
    subject.end(second)
    assert store.view().pods == {}


def test_what_cannot_be_read_is_named_and_counts_as_it_last_was(subject: Subject) -> None:
    subject.store.apply([policy("deny"), policy("other")])
    with watched(subject.store) as seen:
        seen.wait(lambda view: len(view.policies) == 2)
        subject.put("networkpolicies/shop/deny", b'{"metadata": {"name": "deny"}, "spec": 1}')
        view = seen.wait(lambda view: bool(view.skipped))
        assert set(view.policies) == {("shop", "deny"), ("shop", "other")}
        assert [key.key for key in view.skipped] == ["networkpolicies/shop/deny"]
        subject.put("networkpolicies/shop/deny", None)
        view = seen.wait(lambda view: not view.skipped)
        assert set(view.policies) == {("shop", "other")}


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (b"\xff", SHUT),
        (b"[]", SHUT),
        (b'{"metadata": {"name": "b"}, "spec": 1}', SHUT),
        (b'{"spec": {"podSelector": 1, "ingress": [{}]}}', SHUT),
        (
            b'{"metadata": {"name": "b"}, "spec": {"ingress": [{}, {"ports": [{"port": 0}]}]}}',
            NetworkPolicy("shop", "a", EVERYTHING, (Rule(),)),
        ),
        (
            b'{"spec": {"policyTypes": ["Ingres"], "ingress": [{"ports": [{"port": 80}]}]}}',
            NetworkPolicy("shop", "a", EVERYTHING, (Rule(None, (PortMatch(port=80),)),), ()),
        ),
        (
            b'{"spec": {"podSelector": {"matchLabels": {"a": "b"}}, "egress": [{"to": 1}]}}',
            NetworkPolicy("shop", "a", A_IS_B, (), ()),
        ),
    ],
)
def test_policy_that_was_never_readable_isolates_without_what_cannot_be_read(
    subject: Subject, value: bytes, left: NetworkPolicy
) -> None:
    subject.put("networkpolicies/shop/a", value)
    with watched(subject.store) as seen:
        view = seen.wait(lambda view: bool(view.skipped))
        assert view.policies == {("shop", "a"): left}
        subject.put("networkpolicies/shop/a", json.dumps(policy("a")).encode())
        view = seen.wait(lambda view: not view.skipped)
        assert view.policies["shop", "a"] == NetworkPolicy("shop", "a", EVERYTHING, ingress=())
        subject.put("networkpolicies/shop/a", None)
        assert not seen.wait(lambda view: not view.policies).skipped


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (
            "namespaces/a",
            b'{"metadata": {"name": "a", "annotations": {"overlay/policy-audit": 1}}}',
        ),
        ("labels/shop/a", b'{"labels": {"a": 1}}'),
        ("pods/n/shop/a", b'{"metadata": {"name": "a", "namespace": "x"}}'),
        ("else/a", b"{}"),
        ('networkpolicies/a"\n/b', b"{}"),
    ],
)
def test_garbage_changes_nothing_but_the_list_of_what_is_skipped(
    subject: Subject, key: str, value: bytes
) -> None:
    subject.store.apply([policy("kept")])
    subject.put(key, value)
    view = subject.store.view()
    assert set(view.policies) == {("shop", "kept")}
    assert len(view.skipped) == 1
    assert view.skipped[0].reason.isprintable()


def test_audit_is_asked_for_by_an_annotation(subject: Subject) -> None:
    subject.store.apply([space("shop", annotations={"overlay/policy-audit": "true"})])
    assert subject.store.view().audited == {"shop"}
    subject.store.apply([space("shop")])
    assert subject.store.view().audited == frozenset()


@pytest.mark.etcd
def test_more_objects_than_etcd_takes_at_once_are_refused_before_the_first(
    etcd: EmbeddedEtcd, prefix: str
) -> None:
    store = opened(etcd, prefix)
    many: list[Mapping[str, Any]] = [policy(f"p{n}") for n in range(MOST + 1)]
    try:
        with pytest.raises(UsageError, match="in parts"):
            store.apply(many)
        store.apply(many[:MOST])
        assert len(store.view().policies) == MOST
        # Not so with the pods of a node: those of 200 are written in parts.
        store.publish("id", [Pod("shop", f"a{n}", frozenset()) for n in range(200)], 0)
        assert len(store.view().pods) == 200
    finally:
        store.close()


@pytest.mark.etcd
def test_watch_lives_through_a_restart_of_etcd(own_etcd: EmbeddedEtcd, prefix: str) -> None:
    store = opened(own_etcd, prefix)
    try:
        store.apply([policy("one")])
        with watched(store) as seen:
            seen.wait(lambda view: len(view.policies) == 1)
            own_etcd.stop()
            eventually(lambda: bool(seen.troubles), 20)
            assert set(seen.views[-1].policies) == {("shop", "one")}
            own_etcd.start()
            eventually(lambda: seen.troubles[-1] is None, 20)
            store.apply([policy("two")])
            seen.wait(lambda view: len(view.policies) == 2)
    finally:
        store.close()
