"""Nodes of a cluster as one view: kept up to date node by node, it is as if made of all of them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.ipam.claim import Duplicate
from overlay.model.address import Family
from overlay.model.lease import Challenge, Lease, LeaseView, SkippedKey
from overlay.model.network import parse_network_config
from overlay.model.versioned import changed_keys
from overlay.store.kube_address import AddressCheck
from overlay.store.kube_lease import LeaseReader, NodeState
from overlay.store.kube_net_config import NO_CONFIG, NetConfig
from overlay.store.kube_node import CHALLENGE, NodeFacts
from overlay.store.kube_table import NodeTable
from overlay.store.kube_watch import Found
from tests.unit.worlds import DUAL, V4, by_key, lease, subnet

Nodes = dict[str, Found[NodeFacts]]

OWN = "node-1"
CONFIGS = (
    NO_CONFIG,
    NetConfig(error="net-conf.json: it is no JSON"),
    *(NetConfig(parse_network_config(text)) for text in (V4, DUAL, '{"Network":"10.99.0.0/16"}')),
)
CIDRS = (
    (),
    ("10.244.1.0/24",),
    ("10.244.2.0/24",),
    ("10.244.1.0/24", "fd00:1:0:1::/64"),
    ("nonsense",),
)


def asks(name: str, node_id: str) -> str:
    head = '"PublicIP":"192.0.2.9","BackendType":"vxlan"'
    return f'{{{head},"Overlay":{{"NodeID":"{node_id}","NodeName":"{name}"}}}}'


@st.composite
def changes(draw: st.DrawFn) -> dict[str, dict[str, object] | None]:
    """Return what becomes of some nodes: None of one that goes."""
    one = st.fixed_dictionaries(
        {
            "uid": st.sampled_from(["a", "b"]),
            "created": st.integers(1, 3),
            "cidrs": st.sampled_from(CIDRS),
            "managed": st.sampled_from(["true", "true", "true", "false"]),
            "public": st.sampled_from(["192.0.2.1", "192.0.2.2", "nowhere"]),
            "asked": st.sampled_from([None, None, "node-1", "node-2", "?"]),
            "error": st.sampled_from([None, None, None, "it cannot be read"]),
            "is_nothing": st.sampled_from([False, False, False, True]),
        }
    )
    names = st.sampled_from([f"node-{number}" for number in range(1, 5)])
    return draw(st.dictionaries(names, st.none() | one, max_size=4))


def found_of(name: str, revision: int, drawn: dict[str, object]) -> Found[NodeFacts]:
    annotations = {
        "backend-type": "vxlan",
        "backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
        "kube-subnet-manager": str(drawn["managed"]),
        "public-ip": str(drawn["public"]),
    }
    if drawn["asked"] is not None:
        annotations[CHALLENGE] = asks(name, str(drawn["asked"]))
    cidrs = drawn["cidrs"]
    assert isinstance(cidrs, tuple)
    assert isinstance(drawn["created"], int)
    facts = None if drawn["is_nothing"] else NodeFacts(name, drawn["created"], cidrs, annotations)
    error = drawn["error"] or ("no Node" if facts is None else None)
    return Found(name, str(drawn["uid"]), revision, facts, None if error is None else str(error))


def whole(nodes: Nodes, reader: LeaseReader, config: NetConfig | None) -> LeaseView:
    """Return leases, skipped keys and challenges of all nodes, as they are defined."""
    families = config.config.families if config is not None and config.config else tuple(Family)
    states = {name: reader.read(found, families) for name, found in nodes.items()}
    skipped = [state.skipped for state in states.values() if state.skipped is not None]
    leases: dict[str, Lease] = {}
    holders: dict[str, str] = {}
    for name, found in by_age(states):
        key = found.subnet.key
        if key not in leases:
            leases[key], holders[key] = found, name
            continue
        text = f"node {name} has the podCIDR {found.subnet} of node {holders[key]}, which is older"
        skipped.append(SkippedKey(name, f"{text}; delete one of them"))
    challenges: dict[str, Challenge] = {}
    for _, state in sorted(states.items(), reverse=True):
        asked = state.challenge
        if asked is not None and asked.attributes.owner is not None:
            node_id = asked.attributes.owner.node_id
            known = challenges.get(node_id)
            if known is None or known.mod_revision <= asked.mod_revision:
                challenges[node_id] = asked
    ordered = sorted(skipped, key=lambda each: (each.key, each.reason))
    return LeaseView(0, leases, skipped=tuple(ordered), challenges=challenges)


def by_age(states: dict[str, NodeState]) -> Iterator[tuple[str, Lease]]:
    leases = {name: state.lease for name, state in states.items() if state.lease is not None}
    yield from sorted(leases.items(), key=lambda item: (item[1].create_revision, item[0]))


steps = st.lists(
    st.tuples(changes(), st.booleans(), st.none() | st.sampled_from(CONFIGS)), max_size=8
)


@settings(max_examples=400)
@given(steps)
def test_a_table_kept_up_to_date_is_one_made_of_all_nodes(
    steps: list[tuple[dict[str, dict[str, object] | None], bool, NetConfig | None]],
) -> None:
    reader = LeaseReader(OWN)
    table, nodes = NodeTable(reader, OWN), Nodes()
    views, last_usable = [table.view()], None
    for revision, (drawn, is_listing, config) in enumerate(steps, 1):
        if config is not None:
            table.set_config(config)
            last_usable = config if config.config is not None else last_usable
        for name, each in drawn.items():
            nodes.pop(name, None)
            if each is not None:
                nodes[name] = found_of(name, revision, each)
        before = views[-1]
        is_news = table.take(nodes, revision, None if is_listing else frozenset(drawn))
        view = table.view()
        expected = whole(nodes, reader, last_usable)
        assert dict(view.leases) == expected.leases
        assert view.skipped == expected.skipped
        assert dict(view.challenges) == expected.challenges
        fresh = NodeTable(reader, OWN)
        for known in (last_usable, table.config):
            fresh.set_config(known if known is not None else NO_CONFIG)
        fresh.take(nodes, revision, None)
        assert view == fresh.view()
        if config is None and not is_news:
            assert replace(view, revision=0) == replace(before, revision=0)
        views.append(view)
    for older, newer in combinations(views, 2):
        for then, now in ((older.leases, newer.leases), (older.challenges, newer.challenges)):
            differing = {key for key in {*then, *now} if then.get(key) != now.get(key)}
            assert differing <= set(changed_keys(then, now))


def test_the_next_oldest_has_a_podcidr_once_the_oldest_goes() -> None:
    drawn = dict[str, object](
        uid="a", managed="true", public="192.0.2.2", asked=None, error=None, is_nothing=False
    )
    drawn["cidrs"] = ("10.244.2.0/24",)
    nodes = {
        f"node-{number}": found_of(f"node-{number}", number, {**drawn, "created": 9 - number})
        for number in (2, 3, 4)
    }
    table = NodeTable(LeaseReader(OWN), OWN)
    holders = []
    while nodes:
        table.take(nodes, 1, None)
        ((_, held),) = table.view().leases.items()
        holder = f"node-{held.mod_revision}"
        others = dict.fromkeys(nodes.keys() - {holder}, f"of node {holder}, which is older")
        told = {each.key: each.reason for each in table.view().skipped}
        assert told.keys() == others.keys()
        assert all(others[name] in told[name] for name in others)
        holders.append(holder)
        del nodes[holder]
        table.take(nodes, 2, frozenset({holder}))
    assert holders == ["node-4", "node-3", "node-2"]
    assert not table.view().leases
    assert not table.view().skipped


def test_what_did_not_change_stays_the_same_object() -> None:
    drawn = dict[str, object](uid="a", created=1, managed="true", error=None, is_nothing=False)
    here = {**drawn, "cidrs": ("10.244.1.0/24",), "public": "192.0.2.1", "asked": "node-1"}
    odd = {**drawn, "cidrs": ("10.244.2.0/24",), "public": "nowhere", "asked": None}
    nodes = {"node-1": found_of("node-1", 1, here), "node-2": found_of("node-2", 2, odd)}
    table = NodeTable(LeaseReader(OWN), OWN)
    table.set_config(CONFIGS[2])
    table.take(nodes, 2, None)
    before = table.view()
    table.take(nodes, 3, None)
    nodes["node-2"] = replace(nodes["node-2"], revision=4)
    assert not table.take(nodes, 4, frozenset({"node-2"}))
    table.take(nodes, 5, frozenset({"node-1"}))
    after = table.view()
    assert (len(before.leases), len(before.skipped), len(before.challenges)) == (1, 1, 1)
    assert after.leases is before.leases
    assert after.skipped is before.skipped
    assert after.challenges is before.challenges
    assert after.config is before.config


probes = st.dictionaries(st.integers(1, 5), st.integers(1, 4), max_size=5)


@given(st.lists(st.tuples(probes, st.integers(1, 3), st.integers(1, 2)), max_size=6))
def test_an_address_is_in_the_way_of_whom_it_was_whatever_was_asked_before(
    steps: list[tuple[dict[int, int], int, int]],
) -> None:
    check = AddressCheck()
    for publics, public, own in steps:
        leases = by_key(*(lease(i, public=of) for i, of in publics.items()))
        mine = lease(9, public=public).attributes.public
        others = [n for n, of in sorted(publics.items()) if of == public and n != own]
        clash = check.clash(leases, mine, subnet(own))
        oldest = leases[subnet(others[0]).key] if others else None
        assert clash == (Duplicate(oldest, mine[Family.IPV4]) if oldest is not None else None)
