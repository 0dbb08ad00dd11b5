"""``desired`` and ``diff``: tables, and properties on a kernel that refuses what Linux does."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.kernel.fake import FakeKernel
from overlay.model.address import FAMILIES, Family, family_of
from overlay.model.errors import PlanConflictError
from overlay.model.kernel import FdbEntry, KernelObject, Key, Neighbor, Route
from overlay.model.lease import Lease
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.plan.diff import diff
from overlay.plan.planner import Planner, Site, desired
from tests.unit.worlds import DUAL, V4, V6, by_key, lease, site, subnet


def ops(before: Site, old: dict[str, Lease], after: Site, new: dict[str, Lease]) -> str:
    observed = desired(before, old).objects.values()
    return "\n".join(str(op) for op in diff(desired(after, new).objects.values(), observed))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        pytest.param(
            [],
            [lease(2, families=[Family.IPV4])],
            "set fdb 0a:da:3b:ec:a0:74 dev overlay.1 dst 192.0.2.2 self permanent\n"
            "set neigh 10.244.2.0 lladdr 0a:da:3b:ec:a0:74 dev overlay.1 nud permanent\n"
            "set route 10.244.2.0/24 via 10.244.2.0 dev overlay.1 onlink proto 79\n"
            "set route 192.0.2.2/32 via 10.244.2.0 dev overlay.1 onlink table 20310 "
            "metric 3221225986 proto 79",
            id="a peer comes: forwarding entry, neighbor, then routes",
        ),
        pytest.param(
            [lease(2, families=[Family.IPV4])],
            [],
            "del route 10.244.2.0/24 via 10.244.2.0 dev overlay.1 onlink proto 79\n"
            "del route 192.0.2.2/32 via 10.244.2.0 dev overlay.1 onlink table 20310 "
            "metric 3221225986 proto 79\n"
            "del neigh 10.244.2.0 lladdr 0a:da:3b:ec:a0:74 dev overlay.1 nud permanent\n"
            "del fdb 0a:da:3b:ec:a0:74 dev overlay.1 dst 192.0.2.2 self permanent",
            id="a peer goes: routes first",
        ),
        pytest.param(
            [lease(2, families=[Family.IPV4])],
            [lease(2, families=[Family.IPV4], macs="n9")],
            "set fdb 92:cd:27:71:e3:14 dev overlay.1 dst 192.0.2.2 self permanent\n"
            "set neigh 10.244.2.0 lladdr 92:cd:27:71:e3:14 dev overlay.1 nud permanent\n"
            "del fdb 0a:da:3b:ec:a0:74 dev overlay.1 dst 192.0.2.2 self permanent",
            id="a peer comes back with a new VTEP MAC",
        ),
        pytest.param(
            [lease(2, families=[Family.IPV4])],
            [lease(2, families=[Family.IPV4], public=7)],
            "set fdb 0a:da:3b:ec:a0:74 dev overlay.1 dst 192.0.2.7 self permanent\n"
            "set route 192.0.2.7/32 via 10.244.2.0 dev overlay.1 onlink table 20310 "
            "metric 3221225991 proto 79\n"
            "del route 192.0.2.2/32 via 10.244.2.0 dev overlay.1 onlink table 20310 "
            "metric 3221225986 proto 79",
            id="a peer comes back with a new address",
        ),
    ],
)
def test_ops_of_one_change(old: list[Lease], new: list[Lease], text: str) -> None:
    here = site(V4)
    assert ops(here, by_key(*old), here, by_key(*new)) == text


@pytest.mark.parametrize("config", [V4, V6, DUAL])
def test_every_family_takes_the_same_path(config: str) -> None:
    here = site(config)
    peer = lease(2, families=here.config.families)
    kinds = [type(o).__name__ for o in desired(here, by_key(peer)).objects.values()]
    one = ["VxlanLink", "LinkAddress", "Rule"]
    each = ["FdbEntry", "Neighbor", "Route", "Route"]
    families = len(here.config.families)
    assert kinds == one * families + ["UnreachableRoute"] * families + each * families


def test_equal_arguments_give_no_op() -> None:
    objects = desired(site(), by_key(lease(2), lease(3))).objects.values()
    assert diff(objects, objects) == ()


def test_two_desired_objects_with_one_kernel_key_are_refused() -> None:
    a = next(o for o in desired(site(), by_key(lease(2))).objects.values() if type(o) is Route)
    b = Route(a.prefix, "eth0")
    with pytest.raises(PlanConflictError, match="share one kernel key"):
        diff([a, b], [])


CONFIGS = [
    parse_network_config(DUAL),
    parse_network_config(V4),
    parse_network_config(DUAL[:-1] + ',"Backend":{"Type":"vxlan","DirectRouting":true}}'),
    parse_network_config(DUAL[:-1] + ',"Backend":{"Type":"vxlan","VNI":7,"Port":4789}}'),
    parse_network_config(DUAL[:-1] + ',"Backend":{"Type":"vxlan","MTU":1400}}'),
    parse_network_config(DUAL[:-1] + ',"Backend":{"Type":"host-gw"}}'),
]


@st.composite
def worlds(draw: st.DrawFn, config: NetworkConfig | None = None) -> tuple[Site, dict[str, Lease]]:
    """Any site and any leases, well-formed or in one another's way."""
    chosen = config or draw(st.sampled_from(CONFIGS))
    here = site(chosen)
    vni = chosen.backend.options.get("VNI", 1)
    peers = draw(
        st.lists(
            st.builds(
                lease,
                st.integers(1, 8),
                families=st.sampled_from([FAMILIES, (Family.IPV4,), (Family.IPV6,)]),
                public=st.none() | st.integers(1, 9),
                macs=st.none() | st.sampled_from(["n2", "n3", "x"]),
                vni=st.sampled_from([vni, vni, vni, 99]),
                backend=st.sampled_from([chosen.backend.type] * 3 + ["wireguard"]),
                revision=st.integers(1, 20),
                at=st.none() | st.sampled_from([subnet(5), subnet(250), subnet(0x10000 - 1)]),
            ),
            max_size=8,
        )
    )
    return here, by_key(*peers)


@settings(max_examples=300, deadline=None)
@given(worlds(), worlds(), st.integers(0, 60))
def test_converges_from_anywhere_cut_off_anywhere_then_is_silent(
    before: tuple[Site, dict[str, Lease]], after: tuple[Site, dict[str, Lease]], budget: int
) -> None:
    kernel = FakeKernel()
    kernel.apply(diff(desired(*before).objects.values(), kernel.dump()))
    kernel.apply(diff(desired(*before).objects.values(), kernel.dump()))
    wanted = desired(*after).objects
    kernel.budget = budget
    kernel.apply(diff(wanted.values(), kernel.dump()))
    kernel.budget = None
    for _ in range(3):  # a device made anew takes what hung on it along: settled by one more pass
        failures = kernel.apply(diff(wanted.values(), kernel.dump()))
    assert failures == ()
    assert {o.key: o for o in kernel.dump()} == wanted
    assert diff(wanted.values(), kernel.dump()) == ()


def path(objects: list[KernelObject], peer: Lease, family: Family) -> str | None:
    """Return where a packet to ``peer``'s pods ends: an underlay address, or None when dropped."""
    network = peer.subnet.network(family)
    route = next((o for o in objects if isinstance(o, Route) and o.prefix == network), None)
    if route is None:
        return None
    if route.device == "eth0":
        return str(route.gateway)
    macs = [
        o.mac
        for o in objects
        if isinstance(o, Neighbor) and (o.device, o.address) == (route.device, route.gateway)
    ]
    ends = [
        str(o.destination)
        for o in objects
        if isinstance(o, FdbEntry) and o.device == route.device and o.mac in macs
    ]
    return ends[0] if ends else None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(CONFIGS[:2]),
    st.lists(st.integers(2, 9), min_size=1, max_size=4, unique=True),
    st.data(),
)
def test_peer_with_new_mac_or_address_is_never_unreachable(
    config: NetworkConfig, numbers: list[int], data: st.DataObject
) -> None:
    here = site(config)
    families = config.families
    old = [lease(i, families=families) for i in numbers]
    new = [
        lease(
            i,
            families=families,
            macs=data.draw(st.sampled_from([None, f"new{i}"])),
            public=data.draw(st.sampled_from([None, i + 100])),
        )
        for i in numbers
    ]
    kernel = FakeKernel()
    kernel.apply(diff(desired(here, by_key(*old)).objects.values(), ()))
    steps = diff(desired(here, by_key(*new)).objects.values(), kernel.dump())
    for op in steps:
        kernel.apply([op])
        for before, after in zip(old, new, strict=True):
            for family in families:
                allowed = {str(x.attributes.public[family]) for x in (before, after)}
                assert path(list(kernel.dump()), before, family) in allowed, str(op)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CONFIGS), st.data())
def test_planner_ends_where_desired_does_whatever_came_before(
    config: NetworkConfig, data: st.DataObject
) -> None:
    histories = data.draw(st.lists(worlds(config), min_size=1, max_size=5))
    planner = Planner(histories[0][0])
    known: dict[Key, KernelObject] = {}
    for _here, leases in histories:
        touched = planner.update(leases)
        now = planner.plan.objects
        differing = {k for k in {*known, *now} if known.get(k) != now.get(k)}
        assert differing <= touched
        known = dict(now)
        whole = desired(planner.site, leases)
        assert now == whole.objects
        assert set(planner.plan.peers) == set(whole.peers)
        assert set(planner.plan.problems) == set(whole.problems)
        peers = planner.plan.peers
        sent_from = planner.site.backend.node_addresses
        addresses = [ip for key in peers for ip in sent_from(leases[key])]
        senders = {family: set(found) for family, found in planner.plan.addresses().items()}
        assert senders == {
            family: {ip for ip in addresses if family_of(ip) is family} for family in FAMILIES
        }
        routes = [o for found in peers.values() for o in found if isinstance(o, Route)]
        assert +planner.plan.routes_to == Counter(route.device for route in routes)
