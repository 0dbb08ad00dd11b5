"""What the store holds: reachable, readable, one lease a node, none about to end."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import (
    Check,
    Fine,
    Scope,
    Unknown,
    Verdict,
    error,
    named,
    warning,
)
from overlay.model.address import IPAddress
from overlay.model.errors import OverlayError
from overlay.model.lease import Lease
from overlay.store.base import LeaseStore, StoreError
from overlay.store.kube_config import KubeAccess

# Half of what `--subnet-lease-renew-margin` leaves by default, of a lease of 24 hours
# and of shorter ones: renewals have failed by then.
_NEAR_S: Final = 1800
_NEAR_PART: Final = 48
_MOST_ASKED: Final = 64  # one request a lease
_ASKERS: Final = 16


def _store(facts: Facts) -> Iterator[Verdict]:
    try:
        view = facts.view()
    except StoreError as exc:
        yield _unreachable(facts, exc)
        return
    if view.config is None:
        why, where = view.config_error or "there is none", facts.where
        if isinstance(where, KubeAccess):
            reason = f"{where.net_config_path}: {why}: no agent can start"
            yield error(reason, "kubectl -n overlay-system edit configmap overlay-network")
        else:
            reason = f"{where.prefix}/config: {why}: no agent can start"
            yield error(reason, "overlayctl network init network.json")
    yield Fine(f"{facts.where.shown}: {len(view.leases)} leases at revision {view.revision}")


def _unreachable(facts: Facts, exc: StoreError) -> Verdict:
    try:
        is_connected = bool((facts.agent().get("store") or {}).get("connected"))
    except OverlayError:
        is_connected = False
    if is_connected:
        flag = "--kubeconfig-file" if isinstance(facts.where, KubeAccess) else "--etcd-endpoints"
        return Unknown(f"the agent is connected, overlayctl is not: {exc}; give {flag}")
    if isinstance(facts.where, KubeAccess):
        reason = f"{exc}: traffic flows on, but nothing new is learned"
        return error(reason, "kubectl get --raw /readyz")
    reason = f"{exc}: traffic flows on, but nothing new is learned and leases run out"
    return error(reason, f"curl -m 2 {facts.where.endpoints[0]}/health")


def _unreadable(facts: Facts) -> Iterator[Verdict]:
    where = facts.where
    for key in facts.view().skipped:
        if isinstance(where, KubeAccess):
            reason = f"{key.key} cannot be read: {key.reason}"
            yield error(reason, "kubectl get nodes -o yaml | grep -B2 -A9 annotations:")
            continue
        full = f"{where.root}subnets/{key.key}" if "/" not in key.key else key.key
        yield error(f"{full} cannot be read: {key.reason}", f"etcdctl del {quote(full)}")
    if not facts.view().skipped:
        yield Fine(f"every lease in {where.shown}")


def _duplicates(facts: Facts) -> Iterator[Verdict]:
    holders: dict[IPAddress, list[Lease]] = defaultdict(list)
    for lease in facts.view().leases.values():
        for address in lease.attributes.public.values():
            holders[address].append(lease)
    for address, leases in holders.items():
        if len(leases) > 1:
            shown = named(f"{lease.subnet} of {lease.node}" for lease in leases)
            youngest = max(leases, key=lambda lease: lease.create_revision)
            yield error(
                f"{len(leases)} leases have public address {address}: {shown}",
                f"overlayctl leases release {youngest.subnet.key}",
            )
    yield Fine(f"{len(holders)} public addresses")


def _own(facts: Facts) -> Iterator[Verdict]:
    own = facts.own_lease()
    if own is not None:
        yield Fine(f"{own.subnet}")
    elif facts.fabric().is_there:
        subnets = named(facts.fabric().own)
        reason = f"no lease is this node's, but its kernel has {subnets or 'a fabric'}"
        yield error(f"{reason}: peers forget it", "systemctl restart overlayd")
    else:
        yield Unknown("no lease is this node's; no agent has run here")


def _ends(facts: Facts) -> Iterator[Verdict]:
    own = facts.own_lease()
    leases = [lease for lease in facts.view().leases.values() if not lease.is_permanent]
    leases.sort(key=lambda lease: lease is not own)
    asked = leases[:_MOST_ASKED]
    store = facts.store()
    with ThreadPoolExecutor(_ASKERS) as pool:
        left = list(pool.map(lambda lease: _near(store, lease), asked))
    for lease, seconds in zip(asked, left, strict=True):
        if seconds is None:
            continue
        whose = "this node's lease" if lease is own else f"the lease of {lease.node},"
        reason = f"{whose} {lease.subnet} ends in {seconds} s and was not renewed"
        where = "" if lease is own else f"ssh {quote(lease.node)} "
        yield warning(reason, f"{where}systemctl restart overlayd")
    yield Fine(f"{len(asked)} of {len(leases)} leases asked for")


def _near(store: LeaseStore, lease: Lease) -> int | None:
    """Return the seconds that are left of a lease that nobody renews, None for the others."""
    left_s = store.time_to_live(lease)
    if left_s is None or left_s >= _NEAR_S:
        return None
    granted_s = store.granted_ttl(lease)
    return left_s if granted_s is not None and left_s < granted_s / _NEAR_PART else None


CHECKS: Final = (
    Check("store", "whether the store answers and has a network config", _store, Scope.STORE),
    Check("unreadable-keys", "keys under the prefix that are no leases", _unreadable, Scope.STORE),
    Check("duplicate-address", "public addresses of all leases", _duplicates, Scope.STORE),
    Check("own-lease", "this node's lease, by address or node id", _own, Scope.STORE),
    Check("lease-end", "how long leases still last", _ends, Scope.STORE),
)
