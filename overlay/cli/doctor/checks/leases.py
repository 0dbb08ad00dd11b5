"""What the store holds: reachable, readable, one lease a node, none about to end."""

from collections import defaultdict
from collections.abc import Iterator
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
from overlay.store.base import StoreError
from overlay.store.kube_config import KubeAccess

_MARGIN_S: Final = 3600  # --subnet-lease-renew-margin, unless the agent says another one
_NEAR_PART: Final = 48  # of a lease whose node may have another margin
_MOST_ASKED: Final = 64  # one request a lease


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
    own = facts.own_lease()
    for address, leases in holders.items():
        if len(leases) > 1:
            shown = named(f"{lease.subnet} of {lease.node}" for lease in leases)
            # Whose node is gone cannot be told from here, but where one is this node's own.
            others = [lease for lease in leases if lease is not own]
            if len(others) < len(leases):
                mend = "; ".join(f"overlayctl leases release {o.subnet.key}" for o in others)
            else:
                mend = f"overlayctl leases show {address}  # release that of the node that is gone"
            reason = f"{len(leases)} leases have public address {address}: {shown}"
            yield error(reason, mend)
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
    # Renewals begin with the margin; half of it later they have failed.
    margin_s = _margin_s(facts)
    near_s = (margin_s or _MARGIN_S) / 2
    for lease, seconds in zip(asked, store.times_to_live(asked), strict=True):
        if seconds is None or seconds >= near_s:
            continue
        is_known = lease is own and margin_s is not None
        if not is_known and seconds >= (store.granted_ttl(lease) or 0) / _NEAR_PART:
            continue
        whose = "this node's lease" if lease is own else f"the lease of {lease.node},"
        reason = f"{whose} {lease.subnet} ends in {seconds} s and was not renewed"
        where = "" if lease is own else f"ssh {quote(lease.node)} "
        yield warning(reason, f"{where}systemctl restart overlayd")
    yield Fine(f"{len(asked)} of {len(leases)} leases asked for")


def _margin_s(facts: Facts) -> int | None:
    """Return how long before its end the agent renews this node's lease, in seconds.

    None where no agent says it.
    """
    try:
        said = facts.agent().get("renew_margin_s")
    except OverlayError:
        said = None
    return said if isinstance(said, int) else None


CHECKS: Final = (
    Check("store", "whether the store answers and has a network config", _store, Scope.STORE),
    Check("unreadable-keys", "keys under the prefix that are no leases", _unreadable, Scope.STORE),
    Check("duplicate-address", "public addresses of all leases", _duplicates, Scope.STORE),
    Check("own-lease", "this node's lease, by address or node id", _own, Scope.STORE),
    Check("lease-end", "how long leases still last", _ends, Scope.STORE),
)
