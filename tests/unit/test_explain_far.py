"""What one node tells another of its half of a way, and what the asker makes of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from overlay.agent.explain_call import ExplainCall, Pace, known
from overlay.agent.mesh_seal import seal_question
from overlay.agent.status import Snapshot, Status
from overlay.mesh.ask import Exchange, answer_seal, is_answer
from overlay.model.errors import OverlayError, UsageError
from overlay.model.fabric_key import NO_KEYS, FabricKeys
from overlay.model.lease import LeaseView
from overlay.policy.verdict import Packet
from overlay.trace.explain import explain
from overlay.trace.facts import FarHalf, Observed
from overlay.trace.far import Asked, FarAnswerError, told
from overlay.trace.reasons import WORDS, Reason
from tests.unit import worlds
from tests.unit.test_explain import BROKEN
from tests.unit.ways import FAR, N1, N2, POD, answer, leg, observed, party, with_pod

WORDS_TOLD = {
    *("pod", "node", "underlay", "outside", "ok", "note", "broken", "arrival"),
    *("interface", "route", "neighbor", "fdb", "tunnel", "outside", "mtu", "nat", "bridge"),
    *("policy", "source check", "tunnel policy", "underlay policy", "forwarding", "delivery"),
    *map(str, Reason),
}  # fmt: skip
ASKED = Asked("n1", Packet(FAR, POD, "tcp", 40000, 80), " --proto tcp --port 80")


def texts(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        document = [*document.values()]
    if isinstance(document, list):
        for each in document:
            yield from texts(each)
    elif isinstance(document, str):
        yield document


@pytest.mark.parametrize(("seen", "said"), BROKEN)
def test_break_is_told_in_words_of_fixed_lists_alone(seen: Observed, said: str) -> None:
    document = told(seen)
    assert set(texts(document)) <= WORDS_TOLD
    broken = explain(replace(seen, notes=())).broken
    assert broken is not None
    steps = [*document["there"], *document["back"]]
    found = next(step for step in steps if step["state"] == "broken")
    assert found["step"] == broken.name, said


def test_every_reason_has_words() -> None:
    assert set(WORDS) == set(Reason)
    for words in WORDS.values():
        words.format(node="n1", source="a", destination="b")


def test_whole_half_is_told_and_spelled_with_what_the_asker_knows() -> None:
    ends = {"source": party(FAR, N2), "destination": party(POD, N1)}
    far = ASKED.steps(json.loads(json.dumps(told(observed(answer(), leg(), **ends)))))
    there = [str(step) for step in far.there]
    assert there == [
        "n1 node tunnel: the VXLAN device is up [mtu 1450]",
        "n1 node route: leads towards 10.244.1.2 [mtu 1450]",
        "n1 pod interface: is up [mtu 1450]",
        "n1 pod delivery: 10.244.1.2 is there",
    ]
    assert str(far.back[-1]) == "n1 underlay mtu: full packets fit [mtu 1450]"


def test_break_of_the_far_half_is_the_break_of_the_way() -> None:
    pod = with_pod(has_address=False, hop=None)
    far = Asked("n2", Packet(POD, FAR)).steps(told(observed(pod)))
    way = explain(observed(far=far))
    assert way.broken is not None
    assert way.broken.place == "n2 pod"
    assert way.broken.fault == "the pod has lost its address"
    assert way.broken.mend == "ssh n2 overlayctl explain 10.244.1.2 10.244.2.2"


def test_assumption_says_why() -> None:
    way = explain(observed(far=FarHalf(why="nobody answers there")))
    assert "as its lease says (nobody answers there)" in str(way)


GOOD = {"place": "node", "step": "route", "state": "ok", "mtu": 1450, "reason": "unsaid"}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(None, id="nothing"),
        pytest.param({}, id="no ways"),
        pytest.param({"there": [], "back": {}}, id="no list"),
        pytest.param({"there": [{**GOOD, "place": "\x1b[2J"}], "back": []}, id="no place"),
        pytest.param({"there": [{**GOOD, "step": "x"}], "back": []}, id="a step of no kind"),
        pytest.param({"there": [{**GOOD, "step": []}], "back": []}, id="a step that is no text"),
        pytest.param({"there": [{**GOOD, "state": "great"}], "back": []}, id="a state of no kind"),
        pytest.param({"there": [{**GOOD, "mtu": True}], "back": []}, id="an MTU that is none"),
        pytest.param({"there": [{**GOOD, "mtu": -1}], "back": []}, id="an MTU below nothing"),
        pytest.param({"there": [GOOD] * 65, "back": []}, id="endless"),
        pytest.param({"there": ["ok"], "back": []}, id="a word"),
    ],
)
def test_answer_that_is_none_is_refused(document: Any) -> None:
    with pytest.raises(FarAnswerError, match="n1 told"):
        ASKED.steps(document)


def test_reason_of_a_newer_version_breaks_all_the_same() -> None:
    step = {**GOOD, "state": "broken", "reason": "gremlins"}
    (found,) = ASKED.steps({"there": [step], "back": []}).there
    assert (found.state, found.fault) == ("broken", "it ends here")
    assert found.mend == ("ssh n1 overlayctl explain 10.244.2.2 10.244.1.2 --proto tcp --port 80")


def status(*numbers: int, keys: FabricKeys = NO_KEYS) -> Status:
    """Return what the agent of node 1 knows of nodes with those numbers; 9 is flannel's."""
    found = worlds.by_key(*map(worlds.lease, numbers))
    if 9 in numbers:
        key = worlds.subnet(9).key
        found[key] = replace(found[key], attributes=replace(found[key].attributes, owner=None))
    status = Status()
    status.update(site=worlds.site(), view=LeaseView(1, found, fabric_keys=keys))
    return status


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        pytest.param("10.244.1.2", "203.0.113.1", id="an address of nobody"),
        pytest.param("10.244.2.2", "127.0.0.1", id="the host's loopback"),
        pytest.param("10.244.2.2", "172.17.0.1", id="an address that no lease has"),
        pytest.param("10.244.2.2", "10.244.3.2", id="two others"),
        pytest.param("10.244.1.2", "10.244.1.3", id="two of this node"),
    ],
)
def test_others_are_told_of_packets_between_leases_alone(source: str, destination: str) -> None:
    addresses = ip_address(source), ip_address(destination)
    with pytest.raises(UsageError, match="one address must be of this node's lease"):
        known(status(1, 2, 3).get(), (), addresses)


@pytest.mark.parametrize("own", ["10.244.1.2", "192.0.2.1", "fd00:1:0:1::2", "2001:db8::1"])
def test_packets_between_two_leases_are_told_of(own: str) -> None:
    own_address = ip_address(own)
    other = ip_address("10.244.2.7" if own_address.version == 4 else "2001:db8::2")
    for addresses in ((own_address, other), (other, own_address)):
        found = known(status(1, 2, 3).get(), (), addresses)
        assert found.own is not None
        assert (found.own.node, [holder.node for holder in found.holders]) == ("node1", ["node2"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "source: an address"),
        ({"source": "10.244.1.2", "destination": "x"}, "destination: an address"),
        ({"source": "10.244.1.2", "destination": "10.244.2.2"}, "protocol: one of"),
        (
            {"source": "10.244.1.2", "destination": "10.244.2.2", "protocol": "tcp", "port": True},
            "port: 1 to 65535",
        ),
    ],
)
def test_question_that_is_none_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ExplainCall(status(1, 2), list, lambda: 0.0)(given)


def test_node_without_a_lease_tells_nothing() -> None:
    with pytest.raises(UsageError, match="holds no lease yet"):
        known(Snapshot(), (), (POD, FAR))


def test_who_asks_all_the_time_waits() -> None:
    now = [0.0]
    pace = Pace(4.0, 8, lambda: now[0])
    for _ in range(8):
        pace.take()
    with pytest.raises(OverlayError, match="asked too often"):
        pace.take()
    now[0] = 0.25
    pace.take()
    with pytest.raises(OverlayError):
        pace.take()


KEY = b"k" * 32
NONCE, ASKER = b"n" * 16, b"a" * 16
QUESTION = {
    "address": "192.0.2.2",
    "call": "explain",
    "nonce": NONCE.hex(),
    "asker": ASKER.hex(),
    "body": "{}",
}


def test_agent_seals_a_question_and_keeps_the_key() -> None:
    found = seal_question(status(1, 2, keys=FabricKeys(KEY)), QUESTION)
    exchange = Exchange("n2", NONCE, ASKER, "explain")
    assert found["seal"] == exchange.question_seal(KEY, b"{}").hex()
    sealed = answer_seal(exchange.answer_key(KEY), 200, b"yes")
    assert is_answer(bytes.fromhex(found["answer_key"]), sealed, 200, b"yes")
    assert KEY.hex() not in json.dumps(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"address": "x"}, "an address is wanted"),
        ({"address": "192.0.2.77"}, "no node with a lease is at 192.0.2.77"),
        ({"address": "192.0.2.9"}, "flannel's, which answers no questions"),
        ({"nonce": "00"}, "nonce: 16 bytes"),
        ({"asker": None}, "asker: 16 bytes"),
        ({"call": 1}, "call and body: texts"),
    ],
)
def test_what_is_no_question_is_not_sealed(change: dict[str, Any], said: str) -> None:
    with pytest.raises(OverlayError, match=said):
        seal_question(status(1, 2, 9, keys=FabricKeys(KEY)), {**QUESTION, **change})


def test_nothing_is_sealed_without_a_key() -> None:
    with pytest.raises(OverlayError, match="not known yet"):
        seal_question(status(1, 2), QUESTION)
