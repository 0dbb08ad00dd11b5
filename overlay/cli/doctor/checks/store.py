"""Whether the store answers, and has a network config."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Unknown, Verdict, error
from overlay.model.errors import OverlayError
from overlay.store.base import StoreError
from overlay.store.kube_config import KubeAccess


def _run(facts: Facts) -> Iterator[Verdict]:
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


CHECK: Final = Check(
    "store", "whether the store answers and has a network config", _run, Scope.STORE
)
