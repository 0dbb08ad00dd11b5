"""Which pod an attachment is of: by its own word, or as an API of pods tells of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from overlay.model.address import IPAddress
from overlay.model.attachment import BRIDGE, Attachment
from overlay.model.netpol import Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.policy.network.links import PodLink
from overlay.policy.network.subject import DEFAULT_NAMESPACE
from overlay.policy.ports import link_local

_ODD: Final = re.compile(r"[^a-z0-9.-]|\.(?=[.-])|(?<=-)\.")
_LONGEST: Final = 253  # characters of a pod's name (RFC 1123)
# Of CNI_ARGS.
_NAMESPACE, _NAME, _UID = "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"


def pod_key(attachment: Attachment) -> PodKey:
    """Return the pod that an attachment is of: the container's id where nothing names one."""
    arguments = attachment.arguments
    namespace = _spelled(arguments.get(_NAMESPACE, "").replace(".", "-"))
    name = _spelled(arguments.get(_NAME) or attachment.key.container)
    return namespace or DEFAULT_NAMESPACE, name or "unnamed"


def _spelled(name: str) -> str:
    """Return a runtime's name as the API would have it; Kubernetes' own stay as they are."""
    return _ODD.sub("-", name.lower()).strip("-.")[:_LONGEST].rstrip("-.")


def own_pods(attachments: Iterable[Attachment], node: str) -> dict[PodKey, Pod]:
    """Return this node's pods; one with several interfaces has all their addresses."""
    pods: dict[PodKey, Pod] = {}
    for attachment in attachments:
        key = pod_key(attachment)
        known = pods.get(key)
        addresses = frozenset(attachment.addresses)
        if known is None:
            pods[key] = Pod(*key, addresses, attachment.labels, node)
        else:
            labels = {**known.labels, **attachment.labels}
            pods[key] = replace(known, addresses=known.addresses | addresses, labels=labels)
    return pods


def is_of_kubernetes(attachment: Attachment) -> bool:
    """Return whether a kubelet had the pod made: others are in no API."""
    return bool(attachment.arguments.get(_NAME))


def is_meant(pod: Pod, attachment: Attachment, node: str) -> bool:
    """Return whether an attachment is of this pod, and not of another of its name.

    One of a StatefulSet is made anew under its name, here or on another node.
    """
    uid = attachment.arguments.get(_UID, "")
    return pod.node == node and (not uid or not pod.uid or uid == pod.uid)


def told_pods(
    attachments: Iterable[Attachment], told: Callable[[PodKey], Pod | None], node: str
) -> tuple[dict[PodKey, Pod], dict[PodKey, frozenset[IPAddress]]]:
    """Return this node's pods as an API tells of them, and addresses that it tells nothing of.

    ``told`` gives the pod that a name means. One that has finished is neither:
    its addresses are nobody's.
    """
    pods: dict[PodKey, Pod] = own_pods((a for a in attachments if not is_of_kubernetes(a)), node)
    unknown: dict[PodKey, frozenset[IPAddress]] = {}
    for attachment in attachments:
        if not is_of_kubernetes(attachment):
            continue
        key, addresses = pod_key(attachment), frozenset(attachment.addresses)
        meant = told(key)
        if meant is None or not is_meant(meant, attachment, node):
            unknown[key] = unknown.get(key, frozenset()) | addresses
        elif not meant.is_finished:
            known = pods.get(key)
            before = known.addresses if known is not None else frozenset()
            pods[key] = replace(meant, addresses=before | addresses)
    return pods, unknown


def told(view: PolicyView, asked: Mapping[PodKey, Pod], key: PodKey) -> Pod | None:
    """Return the pod that a name means: what was asked for is newer than the view."""
    return asked.get(key) or view.pods.get(key)


def pod_links(attachments: Iterable[Attachment]) -> list[PodLink]:
    """Return the links of this node's pods."""
    return [
        PodLink(
            each.link,
            each.addresses,
            link_local(each.mac) if each.mode == BRIDGE and each.mac is not None else None,
        )
        for each in attachments
        if each.link
    ]
