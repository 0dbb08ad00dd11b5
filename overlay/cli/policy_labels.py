"""``pod label`` and ``namespace label``: what policies select by, where no Kubernetes says it."""

from argparse import Namespace
from typing import Any

from overlay.cli.flags import Parser
from overlay.cli.out import Output
from overlay.cli.policy_world import (
    as_mapping,
    parse_labels_given,
    parse_pod_name,
    with_policies,
    with_policy_store,
)
from overlay.cli.watch import watchable
from overlay.model.policy_view import AUDIT_ANNOTATION
from overlay.store.base import LeaseStore
from overlay.store.policy_source import PolicySource, PolicyStore

_ON_OFF = ("on", "off")
_ANNOTATE = f"kubectl annotate namespace NAME {AUDIT_ANNOTATION}=true"


def add_parsers(commands: Any) -> None:
    """Add both groups."""
    about = "pods, as policies know them"
    pod: Parser = commands.add_parser("pod", help=about, description=about)
    verbs = pod.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "every pod that a node tells of, with its labels"
    verb: Parser = verbs.add_parser("list", help=about, description=about)
    watchable(verb, with_policies(list_pods))
    about = "set a pod's labels, over those that it started with; it need not be there yet"
    verb = verbs.add_parser("label", help=about, description=about)
    verb.add_argument("pod", metavar="NAMESPACE/NAME")
    verb.add_argument("labels", metavar="KEY=VALUE|KEY-", nargs="+", help="KEY- takes one away")
    verb.set_defaults(run=with_policy_store(label_pod, "kubectl label pod"))
    about = "namespaces, as policies know them"
    namespace: Parser = commands.add_parser("namespace", help=about, description=about)
    verbs = namespace.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "set a namespace's labels"
    verb = verbs.add_parser("label", help=about, description=about)
    verb.add_argument("namespace", metavar="NAME")
    verb.add_argument("labels", metavar="KEY=VALUE|KEY-", nargs="+", help="KEY- takes one away")
    verb.set_defaults(run=with_policy_store(label_namespace, "kubectl label namespace"))
    about = "count and log what its policies would refuse, and let it through"
    verb = verbs.add_parser("audit", help=about, description=about)
    verb.add_argument("namespace", metavar="NAME")
    verb.add_argument("audit", choices=_ON_OFF)
    verb.set_defaults(run=with_policy_store(audit_namespace, _ANNOTATE))


def list_pods(_args: Namespace, _leases: LeaseStore, store: PolicySource, out: Output) -> int:
    """Print the pods."""
    records = [
        {
            "namespace": pod.namespace,
            "name": pod.name,
            "node": pod.node,
            "addresses": [str(a) for a in sorted(pod.addresses, key=lambda a: (a.version, int(a)))],
            "labels": dict(sorted(pod.labels.items())),
        }
        for _, pod in sorted(store.view().pods.items())
    ]
    rows = [
        [r["namespace"], r["name"], r["node"], r["addresses"], _shown(r["labels"])] for r in records
    ]
    out.table(("NAMESPACE", "NAME", "NODE", "ADDRESSES", "LABELS"), rows, {"pods": records})
    return 0


def label_pod(args: Namespace, _leases: LeaseStore, store: PolicyStore, out: Output) -> int:
    """Change a pod's labels. Raises PolicyFormatError."""
    key = parse_pod_name(args.pod)
    labels = store.label(key, parse_labels_given(args.labels))
    shown = "/".join(key)
    out.facts({"pod": shown, "labels": _shown(labels)}, {"pod": shown, "labels": dict(labels)})
    return 0


def label_namespace(args: Namespace, _leases: LeaseStore, store: PolicyStore, out: Output) -> int:
    """Change a namespace's labels; it is made where there is none."""
    document = _namespace(store, args.namespace)
    given = parse_labels_given(args.labels)
    labels = {**as_mapping(document["metadata"].get("labels")), **given}
    document["metadata"]["labels"] = {k: v for k, v in labels.items() if v is not None}
    return _write(store, document, out)


def audit_namespace(args: Namespace, _leases: LeaseStore, store: PolicyStore, out: Output) -> int:
    """Turn audit on or off; the namespace is made where there is none."""
    document = _namespace(store, args.namespace)
    notes = dict(as_mapping(document["metadata"].get("annotations")))
    notes[AUDIT_ANNOTATION] = "true" if args.audit == "on" else "false"
    document["metadata"]["annotations"] = notes
    return _write(store, document, out)


def _namespace(store: PolicyStore, name: str) -> dict[str, Any]:
    for document in store.documents():
        metadata = as_mapping(document.get("metadata"))
        if document.get("kind") == "Namespace" and metadata.get("name") == name:
            return {**document, "metadata": dict(metadata)}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _write(store: PolicyStore, document: dict[str, Any], out: Output) -> int:
    store.apply([document])
    metadata = document["metadata"]
    labels = metadata.get("labels") or {}
    audit = as_mapping(metadata.get("annotations")).get(AUDIT_ANNOTATION) == "true"
    facts = {"namespace": metadata["name"], "labels": _shown(labels), "audit": audit}
    out.facts(facts, {**facts, "labels": labels})
    return 0


def _shown(labels: Any) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))
