"""What Kubernetes adds to a lease store: flannel beside it, waiting, writes, bad annotations."""

import functools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from overlay.model.address import Family
from overlay.model.errors import UsageError
from overlay.model.lease import LeaseAttributes, LeaseView
from overlay.model.subnet import parse_subnet
from overlay.store.base import (
    KEY_OVERLAP_S,
    DuplicateNodeError,
    LeaseLostError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from overlay.store.kube import KubeLeaseStore
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_errors import ForbiddenError
from overlay.store.kube_nodes import NodeWaitingError
from tests.etcd.support import CONFIG, attributes, claim, eventually, watched
from tests.kube.api_server import ApiServer, Fault, Request
from tests.kube.certificates import make_authority
from tests.kube.cluster import NODES, PlantedCluster, flannels, node
from tests.kube.objects import Place

MAC = "c6:1d:62:0e:11:22"
DUAL = '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:1::/48"}'


@pytest.fixture
def cluster(api: ApiServer, tmp_path: Path) -> Iterator[PlantedCluster]:
    """Return node-1 with a podCIDR, and flannel's node-2."""
    store = PlantedCluster(api, tmp_path)
    store.config_file.write_text(CONFIG)
    store.add_node(1, "10.244.1.0/24")
    store.add_node(2, "10.244.2.0/24", **flannels("192.0.2.2", MAC))
    yield store
    store.close()


def writes(cluster: PlantedCluster) -> int:
    return len(cluster.api.asked("patch", "nodes/status"))


def test_annotations_are_flannels_and_one_of_ours(cluster: PlantedCluster) -> None:
    cluster.acquire(claim(1))
    found = cluster.annotations(1)
    ours = json.loads(found.pop("overlay"))
    assert found == {
        "backend-type": "vxlan",
        "backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
        "kube-subnet-manager": "true",
        "public-ip": "192.0.2.1",
    }
    assert ours["NodeID"] == "id-1"


def test_flannels_node_is_a_full_peer_without_owner(cluster: PlantedCluster) -> None:
    lease = cluster.view().leases["10.244.2.0-24"]
    assert lease.attributes.owner is None
    assert lease.attributes.public == {Family.IPV4: ip_address("192.0.2.2")}
    assert lease.attributes.backend_data[Family.IPV4]["VtepMAC"] == MAC
    assert lease.node == "192.0.2.2"


def test_node_that_flannel_takes_back_is_flannels_again(cluster: PlantedCluster) -> None:
    lease = cluster.acquire(claim(1))
    assert cluster.view().leases[lease.subnet.key].attributes.owner is not None
    cluster.annotate(1, **flannels("192.0.2.1", MAC))
    found = cluster.view().leases[lease.subnet.key].attributes
    assert found.owner is None
    assert found.backend_data[Family.IPV4]["VtepMAC"] == MAC


def test_nothing_is_written_while_nothing_changes(cluster: PlantedCluster) -> None:
    lease = cluster.acquire(claim(1))
    written = writes(cluster)
    assert cluster.acquire(claim(1)) == lease
    assert cluster.renew(lease, attributes(1), 60) == lease
    assert writes(cluster) == written
    other = cluster.renew(lease, attributes(1, vni=7), 60)
    assert writes(cluster) == written + 1
    assert other.mod_revision > lease.mod_revision


def test_what_a_kubelet_writes_changes_no_lease(cluster: PlantedCluster) -> None:
    lease = cluster.acquire(claim(1))
    with watched(cluster) as seen:
        seen.wait(lambda view: lease.subnet.key in view.leases)
        before, views = dict(seen.last.leases), len(seen.views)
        for beat in range(3):
            found = cluster.api.objects.get(NODES, "node-2")
            beaten = {**found, "status": {"conditions": [{"type": "Ready", "beat": beat}]}}
            cluster.api.objects.replace(NODES, "node-2", beaten, None)
        cluster.annotate(2, backend_type="host-gw")
        view = seen.wait(lambda v: v.leases["10.244.2.0-24"] != before["10.244.2.0-24"])
        assert view.leases[lease.subnet.key] is before[lease.subnet.key]
        assert len(seen.views) == views + 1
    assert cluster.renew(lease, attributes(1), 60) == lease, "its revision is still the same"


def test_write_that_loses_a_race_looks_again_and_keeps_what_others_wrote(
    cluster: PlantedCluster,
) -> None:
    lease = cluster.acquire(claim(1))
    written = writes(cluster)

    def meddle(request: Request) -> None:
        if request.verb == "patch":
            cluster.api.before = None
            cluster.annotate(1, public_ip_overwrite="203.0.113.7")

    cluster.api.before = meddle
    with pytest.raises(LeaseLostError):
        cluster.renew(lease, attributes(1, vni=9), 60)
    assert writes(cluster) == written + 1, "refused by its resourceVersion"
    assert cluster.acquire(claim(1)).attributes == attributes(1)
    assert cluster.annotations(1)["public-ip"] == "203.0.113.7"


def test_public_ip_overwrite_is_what_peers_see_and_the_node_stays_calm(
    cluster: PlantedCluster, tmp_path: Path
) -> None:
    cluster.annotate(1, public_ip_overwrite="203.0.113.7")
    lease = cluster.acquire(claim(1))
    assert cluster.annotations(1)["public-ip"] == "203.0.113.7"
    assert lease.attributes == attributes(1)
    assert cluster.view().leases[lease.subnet.key] == lease, "the node sees its own address"
    written = writes(cluster)
    assert cluster.renew(lease, attributes(1), 60) == lease
    assert writes(cluster) == written
    peer = KubeLeaseStore(replace(cluster._access, node_name="node-2"))
    seen = peer.view().leases[lease.subnet.key].attributes
    assert seen.public == {Family.IPV4: ip_address("203.0.113.7")}
    assert seen.owner == attributes(1).owner
    peer.close()
    cluster.annotate(1, public_ip_overwrite=None)
    cluster.acquire(claim(1))
    assert cluster.annotations(1)["public-ip"] == "192.0.2.1"


def test_overwrite_that_is_no_address_is_refused_by_name(cluster: PlantedCluster) -> None:
    cluster.annotate(1, public_ip_overwrite="nonsense")
    with pytest.raises(StoreError, match=r"node node-1: annotation public-ip-overwrite 'nonsense'"):
        cluster.acquire(claim(1))


def test_of_several_podcidrs_of_a_family_the_first_is_taken(cluster: PlantedCluster) -> None:
    """The others are no route of ours, and no fault of the node."""
    cluster.add_node(3, "10.244.3.0/24", "10.244.30.0/24")
    lease = cluster.acquire(claim(3))
    assert lease.subnet.key == "10.244.3.0-24"
    view = cluster.view()
    assert "10.244.3.0-24" in view.leases
    assert not [key for key in view.leases if "10.244.30" in key]
    assert [skipped.key for skipped in view.skipped] == []


def test_dual_stack_takes_one_podcidr_of_each_family(
    cluster: PlantedCluster, tmp_path: Path
) -> None:
    cluster.config_file.write_text(DUAL)
    cluster.add_node(3, "10.244.3.0/24", "fd00:1:0:3::/64")
    both: LeaseAttributes = replace(
        attributes(3),
        public={**attributes(3).public, Family.IPV6: ip_address("2001:db8::3")},
        backend_data={
            **attributes(3).backend_data,
            Family.IPV6: {"VNI": 1, "VtepMAC": "02:00:00:00:06:03"},
        },
    )
    lease = cluster.acquire(replace(claim(3, config=DUAL), attributes=both))
    assert lease.subnet.key == "10.244.3.0-24&fd00:1:0:3::-64"
    assert cluster.view().leases[lease.subnet.key].attributes == both
    found = cluster.annotations(3)
    assert found["public-ipv6"] == "2001:db8::3"
    assert json.loads(found["backend-v6-data"])["VtepMAC"] == "02:00:00:00:06:03"
    cluster.config_file.write_text(CONFIG)
    assert "10.244.3.0-24" in cluster.view().leases, "of one family, the other one is left out"
    with pytest.raises(StoreError, match=r"node-1 has the podCIDRs 10\.244\.1\.0/24 and none of"):
        cluster.acquire(claim(1, config=DUAL))


def test_prefix_of_the_annotations_is_a_flag(cluster: PlantedCluster, access: KubeAccess) -> None:
    other = KubeLeaseStore(replace(access, annotation_prefix="example.org/net"))
    assert not other.view().leases, "flannel's are of another fabric"
    other.acquire(claim(1))
    found = cluster.api.objects.get(NODES, "node-1")["metadata"]["annotations"]
    assert set(found) == {
        f"example.org/net-{name}"
        for name in ("backend-type", "backend-data", "kube-subnet-manager", "public-ip", "overlay")
    }
    other.close()


def test_node_that_is_not_there_is_waited_for_without_asking(
    cluster: PlantedCluster, access: KubeAccess
) -> None:
    late = KubeLeaseStore(replace(access, node_name="node-7"))
    mine = claim(7)
    with watched(late) as seen:
        seen.wait(lambda _: True)
        asked = len(cluster.api.asked("get", "nodes"))
        for _ in range(5):
            with pytest.raises(NodeWaitingError, match=r"no node node-7.*--node-name or NODE_NAME"):
                late.acquire(mine)
        assert len(cluster.api.asked("get", "nodes")) == asked
        cluster.add_node(7)
        views = len(seen.views)
        eventually(lambda: len(seen.views) > views or views > 1)
        eventually(lambda: _waits(late, 7, "has no podCIDR yet; waiting"))
        found = cluster.api.objects.get(NODES, "node-7")
        given = {**found, "spec": {"podCIDRs": ["10.244.7.0/24"]}}
        cluster.api.objects.replace(NODES, "node-7", given, None)
        eventually(lambda: not _waits(late, 7, "waiting"))
        seen.wait(lambda view: "10.244.7.0-24" in view.leases)
    late.close()


def _waits(store: KubeLeaseStore, number: int, words: str) -> bool:
    try:
        store.acquire(claim(number))
    except NodeWaitingError as exc:
        return words in str(exc)
    return False


def test_podcidr_outside_the_network_is_a_config_error_of_this_node(
    cluster: PlantedCluster,
) -> None:
    cluster.config_file.write_text('{"Network": "10.99.0.0/16"}')
    view = cluster.view()
    assert view.config is None
    for words in ("10.244.1.0/24", "node-1", "10.99.0.0/16", "--cluster-cidr"):
        assert words in (view.config_error or "")


def test_config_file_is_followed_and_an_error_names_file_and_key(cluster: PlantedCluster) -> None:
    cluster.config_file.unlink()
    with watched(cluster) as seen:
        first = seen.wait(lambda _: True)
        assert (first.config, first.config_error) == (None, None)
        cluster.config_file.write_text(CONFIG)
        seen.wait(lambda view: view.config is not None, 20.0)
        cluster.config_file.write_text('{"Netwrok": "10.244.0.0/16"}')
        bad = seen.wait(lambda view: view.config_error is not None, 20.0)
        assert str(cluster.config_file) in (bad.config_error or "")
        assert "Netwrok" in (bad.config_error or "")
        assert bad.leases.keys() == first.leases.keys()


def test_fault_in_any_thread_of_the_watch_ends_it(cluster: PlantedCluster) -> None:
    def deliver(view: LeaseView) -> None:
        if view.config is not None:  # by the thread that follows the file
            raise ZeroDivisionError

    cluster.config_file.unlink()
    with ThreadPoolExecutor(max_workers=1) as pool:
        watch = pool.submit(cluster.watch, deliver, lambda _error: None, threading.Event())
        eventually(lambda: bool(cluster.api.asked("watch", "nodes")))
        cluster.config_file.write_text(CONFIG)
        with pytest.raises(ZeroDivisionError):
            watch.result(20)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"backend_data": "{"}, "annotation backend-data '{' is not JSON"),
        ({"backend_data": "[1]"}, "BackendData is not an object"),
        ({"backend_data": "1" * 20_000}, "at most 16384 are read"),
        ({"public_ip": "999.1.1.1"}, "PublicIP"),
        ({"public_ip": None}, "neither PublicIP nor PublicIPv6"),
        ({"backend_type": ""}, "BackendType"),
    ],
)
def test_garbage_names_the_node_and_removes_no_working_peer(
    cluster: PlantedCluster, annotations: dict[str, str | None], words: str
) -> None:
    good = cluster.view().leases["10.244.2.0-24"]
    cluster.annotate(2, **annotations)
    view = cluster.view()
    assert view.leases["10.244.2.0-24"] == good
    (skipped,) = view.skipped
    assert words in skipped.reason
    assert "node-2" in skipped.reason
    fresh = KubeLeaseStore(cluster._access)
    assert "10.244.2.0-24" not in fresh.view().leases, "who never saw it well has nothing"
    assert len(fresh.view().skipped) == 1
    fresh.close()
    cluster.annotate(2, **flannels("192.0.2.2", MAC))
    assert not cluster.view().skipped


def test_garbage_in_our_own_annotations_is_mended_by_a_renewal(cluster: PlantedCluster) -> None:
    lease = cluster.acquire(claim(1))
    cluster.annotate(1, backend_data="garbage")
    assert cluster.view().skipped[0].key == lease.subnet.key
    renewed = cluster.renew(lease, attributes(1), 60)
    assert not cluster.view().skipped
    assert cluster.view().leases[lease.subnet.key] == renewed


def test_two_nodes_with_one_podcidr_leave_the_older_one_in_place(cluster: PlantedCluster) -> None:
    young = node("node-3", "10.244.2.0/24", **flannels("192.0.2.3", MAC))
    young["metadata"]["creationTimestamp"] = "2099-01-01T00:00:00Z"
    cluster.api.objects.create(NODES, young)
    view = cluster.view()
    assert str(view.leases["10.244.2.0-24"].attributes.public[Family.IPV4]) == "192.0.2.2"
    assert "node-3 has the podCIDR 10.244.2.0/24 of node node-2" in view.skipped[0].reason


def test_node_deleted_is_a_peer_gone_and_one_made_anew_is_another(cluster: PlantedCluster) -> None:
    lease = cluster.acquire(claim(1))
    cluster.api.objects.delete(NODES, "node-1")
    assert lease.subnet.key not in cluster.view().leases
    with pytest.raises(LeaseLostError):
        cluster.renew(lease, attributes(1), 60)
    with pytest.raises(NodeWaitingError):
        cluster.acquire(claim(1))
    cluster.add_node(1, "10.244.1.0/24")
    assert cluster.acquire(claim(1)).subnet == lease.subnet


def test_address_of_another_node_is_refused(cluster: PlantedCluster) -> None:
    mine = replace(claim(1), attributes=replace(attributes(2), owner=attributes(1).owner))
    with pytest.raises(DuplicateNodeError, match=r"192\.0\.2\.2"):
        cluster.acquire(mine)


def test_who_is_refused_asks_nothing_until_the_address_is_free(cluster: PlantedCluster) -> None:
    mine = replace(claim(1), attributes=replace(attributes(2), owner=attributes(1).owner))
    cluster.acquire(claim(1))
    cluster.add_node(3, "10.244.3.0/24", **flannels("192.0.2.2", MAC))
    with watched(cluster) as seen:
        seen.wait(lambda _: True)
        asked = len(cluster.api.asked("get", "nodes"))
        for node in ("node-2", "node-3"):
            for _ in range(3):
                with pytest.raises(DuplicateNodeError, match=f"10.244.{node[-1]}.0/24"):
                    cluster.acquire(mine)
            assert len(cluster.api.asked("get", "nodes")) == asked
            cluster.api.objects.delete(NODES, node)
            seen.wait(functools.partial(_lacks, f"10.244.{node[-1]}.0-24"))
        cluster.acquire(replace(mine, assured=frozenset({_revision(cluster)})))
    assert cluster.annotations(1)["public-ip"] == "192.0.2.2"


def _lacks(key: str, view: LeaseView) -> bool:
    return key not in view.leases


def _revision(cluster: PlantedCluster) -> int:
    return cluster.view().leases["10.244.1.0-24"].mod_revision


@pytest.mark.parametrize(
    ("verb", "resource"), [("list", "nodes"), ("get", "nodes"), ("patch", "nodes/status")]
)
def test_missing_permission_names_verb_and_resource(
    cluster: PlantedCluster, verb: str, resource: str
) -> None:
    cluster.api.forbidden = {(verb, resource)}
    with pytest.raises(ForbiddenError, match=f"may not {verb} {resource}.*ClusterRole"):
        cluster.acquire(claim(1))
    refused = len(cluster.api.requests)
    with pytest.raises(ForbiddenError):
        cluster.acquire(claim(1))
    assert len(cluster.api.requests) == refused, "not asked again at once"
    cluster.api.forbidden = set()
    eventually(lambda: _is_acquired(cluster))


def _is_acquired(cluster: PlantedCluster) -> bool:
    try:
        cluster.acquire(claim(1))
    except ForbiddenError:
        return False
    return True


def test_key_without_permission_leaves_the_fabric_and_says_why(cluster: PlantedCluster) -> None:
    cluster.api.forbidden = {(verb, "secrets") for verb in ("get", "list", "watch", "create")}
    with watched(cluster) as seen:
        view = seen.wait(lambda v: v.fabric_keys.error is not None)
        assert "may not list secrets" in (view.fabric_keys.error or "")
        assert "10.244.2.0-24" in view.leases
    assert not seen.troubles
    with pytest.raises(ForbiddenError, match="may not get secrets"):
        cluster.make_fabric_key()


def test_key_before_the_newest_ends_by_itself(cluster: PlantedCluster) -> None:
    now = [0.0]
    store = KubeLeaseStore(cluster._access, clock=lambda: now[0])
    store.make_fabric_key()
    store.rotate_fabric_key()
    assert len(store.view().fabric_keys.counting) == 2
    assert len(cluster.view().fabric_keys.counting) == 1, "who did not see the change"
    now[0] += KEY_OVERLAP_S - 1
    assert len(store.view().fabric_keys.counting) == 2
    now[0] += 1
    assert len(store.view().fabric_keys.counting) == 1
    store.close()


def test_key_that_cannot_be_read_is_told_without_a_byte_of_it(cluster: PlantedCluster) -> None:
    cluster.make_fabric_key()
    place = Place("secrets", "overlay")
    secret = cluster.api.objects.get(place, "overlay-fabric-key")
    for value, words in (("bm9uc2Vuc2U=", "64 hexadecimal digits"), ("nonsens", "cannot be read")):
        spoiled = {**secret, "data": {"key": value}}
        cluster.api.objects.replace(place, "overlay-fabric-key", spoiled, None)
        error = cluster.view().fabric_keys.error or ""
        assert words in error
        assert "nonsens" not in error
    cluster.rotate_fabric_key()
    assert cluster.view().fabric_keys.newest is not None


def test_condition_is_written_once(cluster: PlantedCluster) -> None:
    assert cluster.set_network_available()
    assert not cluster.set_network_available()
    conditions = cluster.api.objects.get(NODES, "node-1")["status"]["conditions"]
    assert [(c["type"], c.get("status")) for c in conditions] == [
        ("Ready", None),
        ("NetworkUnavailable", "False"),
    ]


def test_what_kubernetes_gives_is_not_ours_to_write(cluster: PlantedCluster) -> None:
    with pytest.raises(UsageError, match=r"Node\.spec\.podCIDRs"):
        cluster.reserve(parse_subnet("10.244.9.0/24"), "node-9")
    with pytest.raises(UsageError, match="--net-config-path"):
        cluster.write_config(CONFIG)


def test_lease_of_flannels_node_can_be_released(cluster: PlantedCluster) -> None:
    lease = cluster.view().leases["10.244.2.0-24"]
    cluster.release(lease)
    assert cluster.annotations(2) == {}
    assert lease.subnet.key not in cluster.view().leases


def test_server_of_another_authority_is_not_believed(
    cluster: PlantedCluster, access: KubeAccess, tmp_path: Path
) -> None:
    other = make_authority(tmp_path / "other", "127.0.0.1")
    text = Path(access.kubeconfig or "").read_text()
    text = text.replace(str(cluster.api.authority.ca), str(other.ca))
    (tmp_path / "wrong").write_text(text)
    store = KubeLeaseStore(replace(access, kubeconfig=str(tmp_path / "wrong")))
    with pytest.raises(StoreAccessError, match="certificate authority of the API server"):
        store.view()
    store.close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "a: [", '{"clusters": []}', '{"current-context": "x"}']
)
def test_kubeconfig_that_cannot_be_used_is_named(
    access: KubeAccess, tmp_path: Path, text: str
) -> None:
    (tmp_path / "bad").write_text(text)
    store = KubeLeaseStore(replace(access, kubeconfig=str(tmp_path / "bad")))
    with pytest.raises(StoreAccessError, match=r"--kubeconfig-file .*/bad cannot be used"):
        store.view()


def test_no_account_is_named_with_both_ways_out(access: KubeAccess, tmp_path: Path) -> None:
    store = KubeLeaseStore(replace(access, kubeconfig=None, account_dir=tmp_path / "none"))
    with pytest.raises(StoreAccessError, match=r"--kubeconfig-file.*--kube-account-dir"):
        store.view()


def test_call_into_a_hole_ends(cluster: PlantedCluster) -> None:
    cluster.api.faults = [Fault("hole")]
    with pytest.raises(StoreUnavailableError):
        cluster.view()


def test_watch_ends_at_once_when_told(cluster: PlantedCluster) -> None:
    before = threading.active_count()
    with watched(cluster) as seen:
        seen.wait(lambda _: True)
    eventually(lambda: cluster.api.watches == 0)
    assert threading.active_count() <= before + 4  # the server's own threads for its clients


def test_nothing_is_delivered_while_the_server_is_away_and_all_of_it_afterwards(
    cluster: PlantedCluster,
) -> None:
    """A view says that the store answers."""
    with watched(cluster) as seen:
        seen.wait(lambda view: view.config is not None)
        cluster.api.stop()
        eventually(lambda: bool(seen.troubles))
        views = len(seen.views)
        cluster.config_file.write_text(DUAL)
        eventually(lambda: cluster._feed is not None and cluster._feed._is_pending, 20.0)
        assert len(seen.views) == views
        cluster.api.start()
        seen.wait(lambda view: view.config_error is not None, 20.0)
    assert seen.troubles[-1] is None
