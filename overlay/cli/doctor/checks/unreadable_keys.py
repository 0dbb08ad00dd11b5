"""Whether everything under the prefix is a lease: what is none is passed over by all nodes."""

from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Verdict, error
from overlay.store.kube_config import KubeAccess


def _run(facts: Facts) -> Iterator[Verdict]:
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


CHECK: Final = Check(
    "unreadable-keys", "keys under the prefix that are no leases", _run, Scope.STORE
)
