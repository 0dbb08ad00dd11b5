"""What a source of policies holds, at one moment: policies, namespaces and pods as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from overlay.model.cluster_policy import ClusterNetworkPolicy
from overlay.model.lease import SkippedKey
from overlay.model.netpol import Labels, NetworkPolicy, Pod, PodKey

# A namespace with this annotation set to "true": what its policies would drop
# is counted and told, and let through.
AUDIT_ANNOTATION: Final = "overlay/policy-audit"

PolicyKey: TypeAlias = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class PolicyView:
    """Everything a source holds, at one revision.

    ``pods`` are those that nodes have told of, with the ``labels`` that an
    operator gave them in place already. ``skipped`` names what cannot be read;
    where it could be read before, it counts as it last was.

    Where the source ``knows_pods``, they come from an API that pods are made
    in, and a node believes it about the labels and ports of its own pods; one
    that is not there yet is nobody that policies could be about. Elsewhere
    the nodes tell of their pods, and know better themselves.
    """

    revision: int = 0
    policies: Mapping[PolicyKey, NetworkPolicy] = field(default_factory=dict)
    cluster_policies: Mapping[str, ClusterNetworkPolicy] = field(default_factory=dict)
    namespaces: Mapping[str, Labels] = field(default_factory=dict)
    audited: frozenset[str] = frozenset()  # namespaces
    pods: Mapping[PodKey, Pod] = field(default_factory=dict)
    labels: Mapping[PodKey, Labels] = field(default_factory=dict)
    skipped: tuple[SkippedKey, ...] = ()
    node_labels: Mapping[str, Labels] = field(default_factory=dict)  # for cluster policies
    knows_pods: bool = False

    def labels_of(self, pod: PodKey, own: Labels) -> Labels:
        """Return a pod's labels: its ``own`` ones, and over them what an operator gave it."""
        given = self.labels.get(pod)
        return {**own, **given} if given else own
