"""Whom the words on the command line mean, and what the agent's or the store's answer becomes."""

import json
from argparse import Namespace
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from overlay.agent.control import Call, ControlServer
from overlay.cli.knowledge import read_knowledge
from overlay.model.address import Family, IPAddress
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.errors import UsageError
from overlay.store.base import StoreUnavailableError
from overlay.trace.facts import Party
from overlay.trace.holders import Knowledge
from overlay.trace.parties import Names
from tests.unit.ways import HERE, N1, N2, POD

POD6 = ip_address("fd00:1::2")
K8S = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web"}


def attachment(container: str, *addresses: IPAddress, **arguments: str) -> Attachment:
    key = AttachmentKey("net", container, "eth0")
    return Attachment(key, "/run/netns/x", addresses, "opod1", arguments=arguments)


KNOWN = Knowledge(
    own=N1,
    holders=(N2,),
    attachments=(
        attachment("c0ffee012345", POD, POD6, **K8S),
        attachment("c0ffee999999", ip_address("10.244.1.3"), K8S_POD_NAME="other"),
    ),
)
NAMES = Names(KNOWN, lambda address: address in {HERE, ip_address("10.244.1.0")})


def told(party: Party) -> str:
    place = "here" if party.is_here else "there"
    return f"{party.kind} {party.address} {place} {party.node or '?'}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.244.1.2", "pod 10.244.1.2 here n1"),
        ("web", "pod 10.244.1.2 here n1"),
        ("default/web", "pod 10.244.1.2 here n1"),
        ("c0ffee012345", "pod 10.244.1.2 here n1"),
        ("c0ffee0", "pod 10.244.1.2 here n1"),
        ("node", "node 192.0.2.1 here n1"),
        ("n1", "node 192.0.2.1 here n1"),
        ("192.0.2.1", "node 192.0.2.1 here n1"),
        ("10.244.1.0", "node 10.244.1.0 here n1"),
        ("10.244.1.99", "pod 10.244.1.99 here n1"),
        ("10.244.2.2", "pod 10.244.2.2 there n2"),
        ("n2", "node 192.0.2.2 there n2"),
        ("192.0.2.2", "node 192.0.2.2 there n2"),
        ("198.51.100.1", "other 198.51.100.1 there ?"),
    ],
)
def test_words_mean(text: str, expected: str) -> None:
    party = NAMES.party(text, Family.IPV4)
    assert party is not None
    assert told(party) == expected


@pytest.mark.parametrize(
    ("source", "destination", "family", "said"),
    [
        ("gone", "web", None, "'gone' is no address, no pod or container of this node"),
        ("c0ffe", "web", None, "'c0ffe' is no address"),
        ("c0ffee", "web", None, "'c0ffee' means several"),
        ("10.244.2.2", "198.51.100.1", None, "neither 10.244.2.2 nor 198.51.100.1 is on this node"),
        ("10.244.2.2", "n2", None, "ask on n2"),
        ("10.244.1.2", "fd00::1", None, "of different families"),
        ("10.244.1.2", "web", Family.IPV6, "an address is not IPv6"),
        ("web", "n2", Family.IPV6, "share no address family"),
        ("fe80::1%eth0", "web", None, "not an address that one packet goes to"),
        ("::", "web", None, "not an address that one packet goes to"),
        ("web", "::ffff:10.244.2.2", None, "not an address that one packet goes to"),
        ("web", "255.255.255.255", None, "not an address that one packet goes to"),
        ("web", "127.0.0.1", None, "127.0.0.1: every host and pod, or every link, has one"),
        ("fe80::1", "web", None, "fe80::1: every host and pod, or every link, has one"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    source: str, destination: str, family: Family | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        NAMES.pair(source, destination, family)


def test_family_is_that_of_the_address_among_them() -> None:
    source, destination = NAMES.pair("web", "fd00:9::9", None)
    assert (told(source), told(destination)) == (
        f"pod {POD6} here n1",
        "other fd00:9::9 there ?",
    )


STATUS = {
    "phase": "running",
    "node": {"id": "x", "name": "n1"},
    "subnet": "10.244.1.0/24",
    "underlay": {"device": "eth0", "mtu": 1500, "addresses": ["192.0.2.1"]},
    "store": {"connected": True},
    "backend": "vxlan",
    "uptime_s": 1,
    "problems": [
        {"about": "10.244.9.0-24", "text": "lease 10.244.9.0-24 of node n9 speaks host-gw"},
        {"about": "this node", "text": "x"},
    ],
}
PEER = {
    "subnet": "10.244.2.0/24",
    "node": "n2",
    "public": ["192.0.2.2"],
    "backend": "vxlan",
    "mac": "02:00:00:00:00:02",
    "vteps": [{"family": 4, "mac": "02:00:00:00:00:02", "vni": 1}],
    "flannel": False,
}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent that answers as above."""
    path = tmp_path / "run" / "cni.sock"
    held = [{**a.to_json(), "live": True} for a in KNOWN.attachments]
    answers: dict[str, Any] = {
        "status": STATUS,
        "peers": {"peers": [PEER]},
        "ipam": {"attachments": held, "strays": [], "ranges": []},
    }

    def answering(name: str) -> Call:
        return lambda _given: answers[name]

    server = ControlServer(path, {name: answering(name) for name in answers})
    yield path
    server.close()


def refuse(_: object) -> Any:
    raise StoreUnavailableError("etcd is away")


def test_agent_is_asked_first(agent: Path) -> None:
    known = read_knowledge(Namespace(socket=str(agent), open_store=refuse), ())
    assert known.own == N1
    n2, n9 = known.holders
    assert n2 == N2
    assert (n9.node, n9.problem) == ("n9", "lease 10.244.9.0-24 of node n9 speaks host-gw")
    assert [a.addresses for a in known.attachments] == [a.addresses for a in KNOWN.attachments]
    assert (known.is_complete, known.notes) == (True, ())


def test_without_agent_and_store_the_attachments_are_known(tmp_path: Path) -> None:
    place = tmp_path / "attachments"
    place.mkdir()
    (place / "one.json").write_text(json.dumps(KNOWN.attachments[0].to_json()))
    (place / "damaged.json").write_text("{")
    args = Namespace(
        socket=str(tmp_path / "cni.sock"),
        open_store=refuse,
        etcd_endpoints="http://127.0.0.1:1",
        etcd_prefix="/x",
        kube_subnet_mgr="false",
        **{f"etcd_{n}": "" for n in ("cafile", "certfile", "keyfile", "username", "password")},
    )
    known = read_knowledge(args, ())
    assert [a.addresses for a in known.attachments] == [(POD, POD6)]
    assert not known.is_complete
    assert [note.split(":")[0] for note in known.notes] == [
        "nothing is repaired while the agent does not answer",
        "who holds which subnet is not known",
    ]
