"""Peers told from one snapshot to the next: as many as are there, whatever came before."""

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.agent.event_peers import step
from overlay.agent.mesh_peers import MeshPeers
from overlay.agent.peer_leases import differing_peers, peer_leases
from overlay.agent.status import Held, Snapshot
from overlay.mesh.sample import Sample, sample
from overlay.mesh.seal import node_tag
from overlay.model.event import Kind
from overlay.model.lease import Lease, LeaseView
from overlay.model.versioned import MapHistory
from overlay.plan.planner import Problem
from tests.unit.worlds import by_key, lease, site

SITES = (site(i=1), site(i=2))
# Several leases of one node, at several addresses, of any age.
leases = st.builds(
    lambda place, node, public, revision: lease(
        node, at=lease(place).subnet, public=public, revision=revision
    ),
    *(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
)
changes = st.tuples(
    st.lists(leases, max_size=3),
    st.lists(st.integers(1, 5), max_size=2),  # that go
    st.lists(leases, max_size=2).map(lambda found: by_key(*found)),  # that are held
    st.sets(st.integers(1, 5), max_size=2),  # that are refused
    st.sampled_from([0, 0, 0, 0, 1]),  # which site
)


def snapshots(
    steps: Sequence[tuple[list[Lease], list[int], dict[str, Lease], set[int], int]],
) -> list[Snapshot]:
    history: MapHistory[str, Lease] = MapHistory()
    problems: MapHistory[str, Problem] = MapHistory()
    found = [Snapshot()]
    for come, gone, held, refused, here in steps:
        for each in come:
            history.put(each.subnet.key, each)
        for number in gone:
            history.discard(lease(number).subnet.key)
        for number in range(1, 6):
            key = lease(number).subnet.key
            (problems.put(key, Problem(key, "odd")) if number in refused else problems.discard(key))
        view = LeaseView(len(found), history.snapshot())
        rest = {key: each for key, each in held.items() if key not in view.leases}
        found.append(
            Snapshot(
                site=SITES[here],
                view=view,
                held=Held(rest, 1.0) if rest else None,
                problems=problems.snapshot(),
            )
        )
    return found


def youngest(found: Mapping[str, Lease]) -> dict[bytes, str]:
    """Return the subnet by which each node is measured."""
    ordered = sorted(found.items(), key=lambda item: (item[1].create_revision, item[0]))
    owners = ((each.attributes.owner, str(each.subnet)) for _, each in ordered)
    return {node_tag(owner.node_id): subnet for owner, subnet in owners if owner is not None}


@settings(max_examples=300)
@given(st.lists(changes, max_size=6))
def test_peers_that_are_followed_are_those_that_are_there(
    steps: list[tuple[list[Lease], list[int], dict[str, Lease], set[int], int]],
) -> None:
    mesh, known = MeshPeers(), dict[bytes, str]()
    before = Snapshot()
    for now in snapshots(steps):
        keys = differing_peers(before, now)
        old, new = peer_leases(before), peer_leases(now)
        if keys is not None:
            assert {k for k in {*old, *new} if old.get(k) is not new.get(k)} <= set(keys)
        kinds = [kind for kind, *_ in step(before, now)]
        if before.site is not None:
            assert kinds.count(Kind.PEER_ADDED) == len(new.keys() - old.keys())
            assert kinds.count(Kind.PEER_REMOVED) == len(old.keys() - new.keys())
        come, gone = mesh.follow(now)
        assert {tag: peer.subnet for tag, peer in mesh.items()} == youngest(new)
        assert (come, gone) == (mesh.keys() - known.keys(), known.keys() - mesh.keys())
        assert dict(mesh.names()) == {tag: peer.name for tag, peer in mesh.items()}
        before, known = now, dict.fromkeys(mesh, "")


tags = st.sets(st.integers(0, 30).map(lambda number: node_tag(str(number))))


@given(st.lists(st.tuples(tags, tags, st.sampled_from([0, 0, 0, 1])), max_size=8))
def test_sample_that_is_followed_is_the_one_that_would_be_drawn(
    steps: list[tuple[set[bytes], set[bytes], int]],
) -> None:
    own, followed, peers, epoch = node_tag("own"), Sample(node_tag("own"), 5), set[bytes](), 0
    for come, gone, later in steps:
        before, epoch = set(peers), epoch + later
        peers = (peers | come) - gone
        known = followed.tags
        is_other = followed.follow(peers, peers - before, before - peers, epoch)
        assert followed.tags == sample(own, peers, epoch, 5)
        assert is_other == (followed.tags != known)
