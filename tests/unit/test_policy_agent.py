"""The agent's part in policies: who waits, what is retried, cut, told and counted."""

import json
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from overlay.agent.attachments import Attachments
from overlay.agent.cni_config import wanted_labels
from overlay.agent.cni_request import CniError, parse_request
from overlay.agent.policy_cutter import ConnectionCutter
from overlay.agent.policy_denied import DenialCounts, DenialLog
from overlay.agent.policy_enforcer import (
    PolicyEnforcer,
    PolicyNotInForceError,
    PolicyOptions,
)
from overlay.agent.policy_pods import own_pods, pod_key
from overlay.agent.policy_publisher import PodPublisher
from overlay.agent.status import Status
from overlay.ipam.pool import Demand
from overlay.kernel.base import KernelError
from overlay.kernel.conntrack import Connection, Endpoints
from overlay.kernel.nflog import LoggedPacket
from overlay.kernel.nft import NftError
from overlay.kernel.notices import RulesetChange
from overlay.model.attachment import Attachment, AttachmentKey, parse_attachment
from overlay.model.cluster_policy import Action, ClusterNetworkPolicy, ClusterRule, Tier
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, Owner
from overlay.model.netpol import (
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    Requirement,
    Selector,
    World,
)
from overlay.model.node import NodeIdentity
from overlay.model.policy_view import PolicyView
from overlay.model.subnet import parse_subnet
from overlay.policy.network.classes import Direction
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.midway import CUT_MARK, TRACKING
from overlay.policy.network.render import LogOptions
from overlay.policy.network.table import Denial, PolicyRuleset
from overlay.store.base import StoreUnavailableError
from overlay.store.policy_memory import MemoryPolicyStore
from tests.etcd.support import eventually

SUBNET = parse_subnet("10.244.1.0/24")
WEB = Selector((Requirement("app", Operator.IN, frozenset({"web"})),))
DENY = NetworkPolicy("shop", "deny", WEB, ingress=())
FOREIGN = 1000  # the generation from which on somebody else wrote
DENYING = PolicyView(1, policies={DENY.key: DENY})


class Table:
    """A table in memory, which refuses on demand."""

    def __init__(self) -> None:
        self.held: PolicyRuleset | None = None
        self.refuses = False
        self.written = 0

    def apply(self, ruleset: PolicyRuleset) -> bool:
        if self.refuses:
            raise NftError("broken")
        is_new = ruleset != self.held
        self.held, self.written = ruleset, self.written + is_new
        return is_new

    def is_own(self, number: int) -> bool:
        return number < FOREIGN

    def forget(self) -> None:
        if self.held is not None:
            self.held = PolicyRuleset()

    def isolates(self, attachment: Attachment) -> bool:
        to = self.held.maps["ov_to4"].elements if self.held is not None and self.held.maps else {}
        return all(str(address) in to for address in attachment.addresses)


class Node:
    """The pods of one node, and what is enforced for them."""

    def __init__(self, place: Path) -> None:
        self.attachments = Attachments(place)
        self.status = Status()
        self.table = Table()
        self.judged: list[World] = []
        self.enforcer = PolicyEnforcer(
            "n1",
            self.attachments,
            self.status,
            self.table,
            PolicyOptions(),
            applied=lambda world, _options: self.judged.append(world),
        )

    def add(self, name: str, labels: dict[str, str] | None = None, **more: Any) -> Attachment:
        key = AttachmentKey("net", name, "eth0")

        def make(addresses: Any) -> Attachment:
            arguments = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": name}
            return Attachment(
                key, "/x", addresses, "opod", arguments=arguments, labels=labels or {}, **more
            )

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
            self.enforcer.doubt(())
            thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "attachments")


def test_isolated_pod_is_in_the_table_before_it_is_let_in(node: Node) -> None:
    with node.running():
        node.enforcer.put(DENYING)
        for number in range(20):
            pod = node.add(f"p{number}", {"app": "web"})
            node.enforcer.admit(pod)
            assert node.table.isolates(pod)


def test_pod_without_policy_waits_for_nothing_and_writes_nothing(node: Node) -> None:
    # Nothing runs that could answer.
    node.enforcer.put(PolicyView(1))
    node.enforcer.admit(node.add("a", {"app": "web"}))
    node.enforcer.put(DENYING)
    node.enforcer.admit(node.add("b", {"app": "db"}))
    with node.running():
        eventually(lambda: node.status.get().policy is not None)
    assert node.table.held is not None
    assert not node.table.isolates(node.attachments.list()[1])


def test_pod_with_the_address_of_one_that_rules_are_about_waits(node: Node) -> None:
    with node.running():
        node.enforcer.put(DENYING)
        old = node.add("old", {"app": "web"})
        node.enforcer.admit(old)
    node.attachments.release(old.key)
    other = Demand(old.addresses, ())
    key = AttachmentKey("net", "new", "eth0")
    new = node.attachments.add(SUBNET, other, key, lambda a: Attachment(key, "/x", a, "opod"))
    with node.running():
        node.enforcer.admit(new)
        assert not node.table.isolates(new)


def test_what_nft_refuses_keeps_pods_out_and_the_node_not_ready(node: Node) -> None:
    with node.running():
        node.enforcer.put(DENYING)
        node.enforcer.admit(node.add("a", {"app": "web"}))
        node.table.refuses = True
        with pytest.raises(PolicyNotInForceError, match="broken"):
            node.enforcer.admit(node.add("b", {"app": "web"}))
        assert "broken" in (node.status.get().policy_error or "")
        assert any("network policies" in reason for reason in node.status.get().reasons)
        node.table.refuses = False
        eventually(lambda: node.status.get().policy_error is None, 20)


def test_table_that_somebody_changed_is_written_anew(node: Node) -> None:
    with node.running():
        node.enforcer.put(DENYING)
        node.enforcer.admit(node.add("a", {"app": "web"}))
        written = node.table.written
        node.enforcer.doubt([RulesetChange(FOREIGN - 1)])  # our own write
        node.enforcer.admit(node.add("b", {"app": "web"}))
        assert node.table.written == written + 1
        node.enforcer.doubt([RulesetChange(FOREIGN, "nft (pid 7)")])
        eventually(lambda: node.table.written > written + 1, 20)
        eventually(lambda: node.status.get().counters.repairs == 1, 20)
        (event,) = node.status.events.flush()
        assert "nft (pid 7)" in event.text
        node.enforcer.put(PolicyView(2))
        eventually(lambda: node.table.held == TRACKING, 20)


def test_who_fights_for_the_table_delays_no_policy_and_no_pod(node: Node) -> None:
    now = 0.0  # it stands still, so that no pause ends
    node.enforcer._clock = lambda: now
    with node.running():
        node.enforcer.put(DENYING)
        node.enforcer.admit(node.add("a", {"app": "web"}))
        for number in range(1, 7):
            node.enforcer.doubt([RulesetChange(FOREIGN)])
            eventually(lambda: node.status.get().counters.repairs >= number, 20)  # noqa: B023
        node.enforcer.doubt([RulesetChange(FOREIGN)])
        pod = node.add("b", {"app": "web"})
        node.enforcer.admit(pod)
        assert node.table.isolates(pod)


def test_several_interfaces_are_one_pod_and_odd_names_are_spelled_as_names() -> None:
    one = Attachment(AttachmentKey("a", "My_Box", "eth0"), "/x", (ip_address("10.0.0.1"),))
    two = Attachment(AttachmentKey("b", "My_Box", "eth1"), "/x", (ip_address("10.0.0.2"),))
    (pod,) = own_pods([one, two], "n1").values()
    assert pod.key == ("default", "my-box")
    assert pod.addresses == {*one.addresses, *two.addresses}
    odd = {"K8S_POD_NAMESPACE": "../x", "K8S_POD_NAME": 'a"/\n{b}.'}
    assert pod_key(Attachment(one.key, "/x", (), arguments=odd)) == ("x", "a----b")


@pytest.mark.parametrize(
    ("config", "arguments", "labels"),
    [
        ({}, "", {}),
        ({"labels": {"a": "1"}}, "LABELS=b=2,c=", {"a": "1", "b": "2", "c": ""}),
        ({"args": {"cni": {"labels": [{"key": "a", "value": "1"}]}}}, "LABELS=a=2", {"a": "2"}),
        ({"labels": {"a": 'x"; drop'}}, "", "labels"),
        ({"labels": ["a"]}, "", '"labels"'),
        ({"args": {"cni": {"labels": [{"value": "1"}]}}}, "", "has no key"),
    ],
)
def test_labels_come_from_the_configuration_and_its_arguments(
    config: dict[str, Any], arguments: str, labels: dict[str, str] | str
) -> None:
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments,
    }
    document = {"cniVersion": "1.0.0", "name": "n", "type": "overlay", **config}
    request = parse_request(variables, json.dumps(document).encode())
    if isinstance(labels, str):
        with pytest.raises(CniError, match=labels):
            wanted_labels(request)
    else:
        assert wanted_labels(request) == labels


def test_labels_of_an_attachment_outlive_the_agent() -> None:
    made = Attachment(AttachmentKey("n", "c", "eth0"), "/x", (), labels={"app": "web"})
    assert parse_attachment(made.to_json()) == made


def flow(source: str, target: str, port: int, protocol: int = 6) -> Connection:
    one, other = ip_address(source), ip_address(target)
    there, back = Endpoints(one, other, 40000, port), Endpoints(other, one, port, 40000)
    return Connection(protocol, there, back, f"{source} {target} {port}".encode())


class Conntrack:
    """Connections in memory."""

    def __init__(self, *entries: Connection) -> None:
        self.entries = list(entries)
        self.fails = 0

    def connections(self, about: Collection[Any], /) -> list[Connection]:
        if self.fails:
            self.fails -= 1
            raise KernelError("busy")
        return [e for e in self.entries if {e.original.source, e.reply.source} & set(about)]

    def cut(self, gone: Collection[Connection], /) -> int:
        self.entries = [e for e in self.entries if e not in gone]
        return len(gone)

    def mark(self, marked: Collection[Connection], bit: int, /, *, is_set: bool) -> int:
        self.entries = [
            replace(e, mark=e.mark | bit if is_set else e.mark & ~bit) if e in marked else e
            for e in self.entries
        ]
        return len(marked)

    def of(self, *flows: Connection) -> list[int]:
        """Return the marks of connections, as far as they are there."""
        return [e.mark for one in flows for e in self.entries if e.key == one.key]

    def cutter(self, node: Node, **more: Any) -> ConnectionCutter:
        local = lambda: frozenset({ip_address("192.0.2.1")})  # noqa: E731
        return ConnectionCutter(
            "n1", node.attachments, node.status, kernel=self, local=local, **more
        )


PEER = "10.244.2.9"


@pytest.mark.parametrize("keeps", [False, True])
def test_forbidden_connections_are_cut_and_those_of_pods_that_went(node: Node, keeps: bool) -> None:
    pod, gone = node.add("a", {"app": "web"}), node.add("b")
    web, past = str(pod.addresses[0]), str(gone.addresses[0])
    forbidden = [flow(PEER, web, 80), flow(PEER, web, 53, 17), flow(PEER, web, 0, 1)]
    kept = [
        flow(web, PEER, 80),
        flow(web, PEER, 0, protocol=1),
        flow("192.0.2.1", web, 80),
        flow("10.0.0.1", "10.0.0.2", 1),
    ]
    # The last is of a pod that is still there, with one that went.
    stale = [flow(PEER, past, 53, protocol=17), flow(past, PEER, 80), flow(web, past, 53, 17)]
    table = Conntrack(*forbidden, *(replace(each, mark=5) for each in kept), *stale)
    cutter = table.cutter(node, keeps=keeps)
    node.attachments.release(gone.key)
    world = World(own_pods(node.attachments.list(), "n1"), policies=DENYING.policies)
    assert cutter.step(world, DEFAULTS) == (3 if keeps else 6)
    assert table.of(*forbidden) == ([0] * 3 if keeps else [CUT_MARK] * 3)
    assert table.of(*kept) == [5] * 4, "others' marks stay"
    assert table.of(*stale) == []
    assert cutter.step(None, DEFAULTS) == 0
    assert cutter.step(world, DEFAULTS) == 0


def test_what_is_allowed_again_goes_on(node: Node) -> None:
    web = str(node.add("a", {"app": "web"}).addresses[0])
    one = replace(flow(PEER, web, 80), mark=4 | CUT_MARK)  # as an agent before this one left it
    table = Conntrack(one)
    cutter = table.cutter(node)
    pods = own_pods(node.attachments.list(), "n1")
    cutter.step(World(pods), DEFAULTS)
    assert table.of(one) == [4]
    assert cutter.step(World(pods, policies=DENYING.policies), DEFAULTS) == 1
    assert table.of(one) == [4 | CUT_MARK]
    kept = table.cutter(node, keeps=True)
    kept.step(World(pods, policies=DENYING.policies), DEFAULTS)
    assert table.of(one) == [4]


def test_cluster_policies_alone_cut_too(node: Node) -> None:
    web = str(node.add("a", {"app": "web"}).addresses[0])
    everyone = PodPeer(Selector(), Selector())
    deny = ClusterNetworkPolicy(
        "deny", Tier.ADMIN, 1, everyone, egress=(ClusterRule(Action.DENY, None),)
    )
    world = World(own_pods(node.attachments.list(), "n1"), cluster_policies={"deny": deny})
    table = Conntrack(flow(web, PEER, 80), flow(web, PEER, 0, protocol=1))
    assert table.cutter(node).step(world, DEFAULTS) == 0, "the tier is off"
    assert table.cutter(node).step(world, CompileOptions(admin_tier=True)) == 2


def test_address_that_is_given_anew_at_once_inherits_nothing(node: Node) -> None:
    old = node.add("old")
    stale = flow(PEER, str(old.addresses[0]), 53, protocol=17)
    table = Conntrack(stale)
    cutter = table.cutter(node)
    node.attachments.release(old.key)
    key = AttachmentKey("net", "new", "eth0")
    new = node.attachments.add(
        SUBNET, Demand(old.addresses, ()), key, lambda a: Attachment(key, "/x", a, "opod")
    )
    table.fails = 1
    cutter.admit(new)
    assert table.of(stale) == [0], "the kernel did not answer"
    cutter.admit(new)
    assert table.of(stale) == []
    young = flow(PEER, str(new.addresses[0]), 53, protocol=17)
    table.entries.append(young)
    assert cutter.step(None, DEFAULTS) == 0
    assert table.of(young) == [0]


def given_anew(node: Node, *old: Attachment) -> list[Attachment]:
    """Return new pods that have the addresses of old ones."""
    made = []
    for each in old:
        node.attachments.release(each.key)
        key = AttachmentKey("net", f"new-{each.key.container}", "eth0")
        make = partial(Attachment, key, "/x", link="opod")
        made.append(node.attachments.add(SUBNET, Demand(each.addresses, ()), key, make))
    return made


def test_one_look_is_for_all_that_went(node: Node) -> None:
    old = [node.add(name) for name in "abc"]
    stale = [flow(PEER, str(each.addresses[0]), 53, protocol=17) for each in old]
    table = Conntrack(*stale)
    cutter = table.cutter(node)
    new = given_anew(node, *old)
    cutter.admit(new[0])
    assert table.of(*stale) == []
    table.fails = 1  # whoever looks once more meets that
    for each in new[1:]:
        cutter.admit(each)
    assert (cutter.step(None, DEFAULTS), table.fails) == (0, 1)


def test_connections_of_a_pod_that_starts_during_a_look_are_its_own(node: Node) -> None:
    old = node.add("old")
    looks, go_on = threading.Event(), threading.Event()

    class Slow(Conntrack):
        """Takes its time for the first look."""

        def connections(self, about: Collection[Any], /) -> list[Connection]:
            if not looks.is_set():
                looks.set()
                assert go_on.wait(20)
            return super().connections(about)

    table = Slow(flow(PEER, str(old.addresses[0]), 53, protocol=17))
    cutter = table.cutter(node)
    node.attachments.release(old.key)
    with ThreadPoolExecutor(2) as pool:
        step = pool.submit(cutter.step, None, DEFAULTS)
        assert looks.wait(20)
        (new,) = given_anew(node, old)
        admitted = pool.submit(cutter.admit, new)
        admitted.add_done_callback(
            lambda _: table.entries.append(flow(str(new.addresses[0]), PEER, 80))
        )
        wait([admitted], 0.2)  # time to begin before the look is over, were that allowed
        go_on.set()
        step.result(20)
        admitted.result(20)
    assert cutter.step(None, DEFAULTS) == 0
    assert [each.original.source for each in table.entries] == list(new.addresses[:1])


def test_what_the_kernel_did_not_answer_is_asked_again(node: Node) -> None:
    pod, gone = node.add("a", {"app": "web"}), node.add("b")
    forbidden = flow(PEER, str(pod.addresses[0]), 80)
    stale = flow(PEER, str(gone.addresses[0]), 80)
    table = Conntrack(forbidden, stale)
    cutter = table.cutter(node)
    node.attachments.release(gone.key)
    table.fails = 2
    cutter.judge(
        World(own_pods(node.attachments.list(), "n1"), policies=DENYING.policies), DEFAULTS
    )
    stop = threading.Event()
    thread = threading.Thread(target=cutter.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: table.of(forbidden, stale) == [CUT_MARK], 20)
    finally:
        stop.set()
        cutter.wake()
        thread.join(20)
    assert not thread.is_alive()


class Refusing(MemoryPolicyStore):
    """Fails once, and notes which lease pods are bound to."""

    def __init__(self) -> None:
        super().__init__()
        self.bound: list[int] = []

    def publish(self, node: str, pods: Any, lease_id: int) -> None:
        self.bound.append(lease_id)
        if len(self.bound) == 1:
            raise StoreUnavailableError("not yet")
        super().publish(node, pods, lease_id)


def test_pods_are_told_again_under_a_renewed_lease(node: Node) -> None:
    store, stop = Refusing(), threading.Event()
    publisher = PodPublisher(NodeIdentity("id", "n1"), node.attachments, node.status, store)
    owner = Owner("id", "n1")

    def renewed(lease_id: int) -> LeaseView:
        lease = Lease(SUBNET, LeaseAttributes("vxlan", {}, {}, owner), 1, 1, lease_id)
        return LeaseView(1, {SUBNET.key: lease})

    class _Site:
        own = renewed(0).leases[SUBNET.key]

    node.status.update(site=_Site())
    node.add("a", {"app": "web"})
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    publisher.follow(renewed(7))
    eventually(lambda: ("shop", "a") in store.view().pods, 20)
    publisher.follow(renewed(8))
    eventually(lambda: store.bound[-1] == 8, 20)
    store.end_lease(7)
    assert store.view().pods["shop", "a"].labels == {"app": "web"}
    stop.set()
    publisher.wake()
    thread.join(20)
    assert not thread.is_alive()


def test_pods_that_the_store_lost_are_told_again(node: Node) -> None:
    store, stop, now = MemoryPolicyStore(), threading.Event(), [0.0]
    publisher = PodPublisher(
        NodeIdentity("id", "n1"), node.attachments, node.status, store, clock=lambda: now[0]
    )
    publisher._lease_id = 7
    node.add("a", {"app": "web"})
    publisher.wake()
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: publisher._told is not None, 20)
        store.put("pods/id/shop/a", None)
        publisher.compare(store.view())
        eventually(lambda: publisher._doubted_at is not None, 20)
        assert ("shop", "a") not in store.view().pods, "a watch may be late"
        now[0] += 5.0
        publisher.wake()
        eventually(lambda: ("shop", "a") in store.view().pods, 20)
        publisher.compare(store.view())
        now[0] += 100.0
        revision = store.view().revision
        publisher.wake()
        publisher.wake()
        assert store.view().revision == revision
    finally:
        stop.set()
        publisher.wake()
        thread.join(20)
    assert not thread.is_alive()


def test_refused_packet_is_told_with_names_and_not_too_often() -> None:
    status = Status()
    pod = Pod("shop", "web", frozenset({ip_address("10.244.1.2")}))
    world = World({pod.key: pod}, nodes={"n2": frozenset({ip_address("192.0.2.2")})})
    denial = Denial("ab12", Direction.INGRESS, ("shop/deny",))
    log = DenialLog(LogOptions(1), status, lambda: world, lambda: {"ab12": denial}, lambda: 5.0)
    ends = (ip_address("192.0.2.2"), ip_address("10.244.1.2"))
    for _ in range(100):
        log.tell(LoggedPacket("overlay-policy ab12 ", *ends, 6, 80))
    log.tell(LoggedPacket("somebody else's", *ends, 6, 80))
    (event,) = status.events.flush()
    assert event.times == 20
    assert event.text == (
        "node n2 (192.0.2.2) to shop/web (10.244.1.2) TCP port 80 is denied by ingress of shop/deny"
    )


def test_counts_go_on_where_the_kernels_begin_anew() -> None:
    found = {"ov_ab": (5, 0)}
    denial = Denial("ab", Direction.INGRESS, ("shop/deny",))
    read: Callable[[], dict[str, tuple[int, int]]] = lambda: found  # noqa: E731
    counts = DenialCounts(read)
    assert counts.look({"ab": denial}) == [(denial, 5)]
    found["ov_ab"] = (2, 0)
    assert counts.look({"ab": denial}) == [(denial, 7)]
    assert counts.look({}) == [(denial, 7)]
    others = [Denial(f"{n:04}", Direction.INGRESS, (f"shop/p{n}",)) for n in range(3000)]
    for other in others:
        counts.look({other.ident: other})
    told = [each for each, _ in counts.look({denial.ident: denial})]
    assert len(told) == 1001
    assert (denial in told, others[-1] in told) == (True, True)
