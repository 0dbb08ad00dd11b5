"""``policy``: network policies without Kubernetes, and questions about any of them."""

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from overlay.cli.control import AgentRefusedError, AgentUnreachableError, call
from overlay.cli.flags import Parser, socket_path
from overlay.cli.out import Output
from overlay.cli.policy_world import (
    addresses_of,
    read_documents,
    with_policies,
    with_policy_store,
    world_of,
)
from overlay.cli.watch import watchable
from overlay.model.errors import UsageError
from overlay.model.netpol import Flow, Protocol, World
from overlay.model.policy_view import PolicyView
from overlay.policy.network.compile import CompileOptions
from overlay.policy.network.decide import Decider, Decision, Judgement
from overlay.policy.network.picture import draw
from overlay.policy.network.reachability import differences, groups, reaches, shown_ports
from overlay.policy.network.subject import DEFAULT_NAMESPACE
from overlay.store.base import LeaseStore
from overlay.store.policy_objects import FOLDERS, laid_over
from overlay.store.policy_source import PolicySource, PolicyStore

_CALL_S: Final = 2.0
_LAST_PORT: Final = 65535


def add_parser(commands: Any) -> None:
    """Add the group."""
    about = "network policies: apply, list, delete, and who may talk to whom"
    group: Parser = commands.add_parser("policy", help=about, description=about)
    verbs = group.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "check objects and write them, all or none: NetworkPolicy, Namespace and others"
    verb: Parser = verbs.add_parser("apply", help=about, description=about)
    verb.add_argument(
        "-f", "--file", required=True, metavar="FILE", help="YAML or JSON; - reads standard input"
    )
    verb.set_defaults(run=with_policy_store(apply, "kubectl apply"))
    about = "every policy, and what it refused on this node"
    verb = verbs.add_parser("list", help=about, description=about)
    watchable(verb, with_policies(list_policies))
    about = "delete one object"
    verb = verbs.add_parser("delete", help=about, description=about)
    verb.add_argument("name", metavar="NAME", help="NAMESPACE/NAME, or NAME of the default one")
    verb.add_argument("--kind", default="NetworkPolicy", choices=tuple(FOLDERS))
    verb.set_defaults(run=with_policy_store(delete, "kubectl delete"))
    about = "whether policies let one through to another, and which rule; status 1 when not"
    verb = verbs.add_parser("test", help=about, description=about)
    verb.add_argument("source", metavar="SRC", help="NAMESPACE/POD, a node, or an address")
    verb.add_argument("target", metavar="DST", help="the same")
    verb.add_argument("--port", type=int, required=True, metavar="PORT")
    verb.add_argument("--proto", default="tcp", choices=("tcp", "udp", "sctp"))
    _tier(verb)
    verb.set_defaults(run=with_policies(test))
    about = "which pairs of pods a file would open or close; status 1 when any"
    verb = verbs.add_parser("diff", help=about, description=about)
    verb.add_argument("file", metavar="FILE", help="what `apply` would take; - reads stdin")
    _namespace(verb)
    _tier(verb)
    verb.set_defaults(run=with_policies(diff))
    about = "draw who reaches whom, as SVG"
    verb = verbs.add_parser("graph", help=about, description=about)
    verb.add_argument("--file", default="-", metavar="FILE", help="where to; - is standard output")
    _namespace(verb)
    _tier(verb)
    verb.set_defaults(run=with_policies(graph))


def _namespace(verb: Parser) -> None:
    verb.add_argument(
        "--namespace", default="", metavar="NAME", help="pairs with a pod of it alone"
    )


def _tier(verb: Parser) -> None:
    verb.add_argument(
        "--admin-tier", action="store_true", help="ask ClusterNetworkPolicy too, as agents with "
        "--policy-admin-tier do"
    )  # fmt: skip


def apply(args: Namespace, _leases: LeaseStore, store: PolicyStore, out: Output) -> int:
    """Write a file's objects. Raises PolicyFormatError."""
    said = store.apply(read_documents(args.file))
    out.table(("APPLIED",), [[name] for name in said], {"applied": said})
    return 0


def list_policies(args: Namespace, _leases: LeaseStore, store: PolicySource, out: Output) -> int:
    """Print every policy; return 1 when keys could not be read."""
    view = store.view()
    counts = _denied(args)
    records: list[dict[str, Any]] = []
    for (namespace, name), policy in sorted(view.policies.items()):
        selected = [
            pod
            for pod in view.pods.values()
            if pod.namespace == namespace and pod.counts and policy.pods.selects(pod.labels)
        ]
        records.append(
            {
                "kind": "NetworkPolicy",
                "namespace": namespace,
                "name": name,
                "pods": len(selected),
                "ingress": None if policy.ingress is None else len(policy.ingress),
                "egress": None if policy.egress is None else len(policy.egress),
                "audited": namespace in view.audited,
                "denied": None if counts is None else counts.get(f"{namespace}/{name}", 0),
            }
        )
    for name, cluster in sorted(view.cluster_policies.items()):
        records.append(
            {
                "kind": "ClusterNetworkPolicy",
                "namespace": None,
                "name": name,
                "pods": None,
                "ingress": len(cluster.ingress),
                "egress": len(cluster.egress),
                "audited": False,
                "denied": None if counts is None else counts.get(name, 0),
            }
        )
    skipped = _skipped(view)
    columns = ("NAMESPACE", "NAME", "KIND", "PODS", "INGRESS", "EGRESS", "DENIED HERE", "")
    rows = [
        [
            r["namespace"] or "-",
            r["name"],
            r["kind"],
            "" if r["pods"] is None else r["pods"],
            *("-" if r[way] is None else f"{r[way]} rules" for way in ("ingress", "egress")),
            "?" if r["denied"] is None else r["denied"],
            "audit" if r["audited"] else "",
        ]
        for r in records
    ]
    out.table(columns, rows, {"policies": records, "skipped": skipped})
    return 0 if _tell_skipped(view, out) else 1


def delete(args: Namespace, _leases: LeaseStore, store: PolicyStore, out: Output) -> int:
    """Delete one object. Raises NoSuchObjectError."""
    namespace, _, name = args.name.rpartition("/")
    if args.kind == "NetworkPolicy":
        namespace = namespace or DEFAULT_NAMESPACE
    elif namespace:
        raise UsageError(f"{args.name!r}: a {args.kind} is in no namespace; give its name alone")
    store.delete(args.kind, namespace, name)
    shown = f"{args.kind} {'/'.join(part for part in (namespace, name) if part)}"
    out.facts({"deleted": shown}, {"deleted": shown})
    return 0


def test(args: Namespace, leases: LeaseStore, store: PolicySource, out: Output) -> int:
    """Print what becomes of a connection; return 1 when it is refused in any family."""
    if not 0 < args.port <= _LAST_PORT:
        raise UsageError(f"--port {args.port}: use 1 to {_LAST_PORT}")
    view = store.view()
    world = world_of(view, leases.view())
    decider = Decider(world, _options(view, args))
    protocol = Protocol[args.proto.upper()]
    answers = [
        (flow, decider.decide(flow))
        for source in addresses_of(args.source, world)
        for target in addresses_of(args.target, world, source.version)
        if source.version == target.version
        for flow in [Flow(source, target, protocol, args.port)]
    ]
    if not answers:
        raise UsageError(f"{args.source} and {args.target} have no family of addresses in common")
    rows = [
        [f.source, f.destination, "passes" if d.allowed else "DENIED", _why(d)] for f, d in answers
    ]
    document = [_record(flow, decision) for flow, decision in answers]
    whole = {"flows": document, "skipped": _skipped(view)}
    out.table(("FROM", "TO", "VERDICT", "BECAUSE"), rows, whole)
    is_whole = _tell_skipped(view, out)
    return 0 if is_whole and all(decision.allowed for _, decision in answers) else 1


def diff(args: Namespace, leases: LeaseStore, store: PolicySource, out: Output) -> int:
    """Print what a file would change for live pods; return 1 when anything."""
    view = store.view()
    before = world_of(view, leases.view())
    planned = laid_over(view, read_documents(args.file))
    after = _with_new_labels(before, planned)
    found = list(
        differences(
            before, after, _options(view, args), _options(planned, args), only=args.namespace
        )
    )
    rows = [
        [d.source.shown, d.target.shown, word, shown_ports(ports, d.over)]
        for d in found
        for word, ports in (("opens", d.opened), ("closes", d.closed))
        if ports
    ]
    document = [
        {
            "from": ["/".join(pod.key) for pod in d.source.pods],
            "to": ["/".join(pod.key) for pod in d.target.pods],
            "opens": _spans(d.opened),
            "closes": _spans(d.closed),
            "ip_version": d.over,
        }
        for d in found
    ]
    if found or not out.is_table:
        whole = {"changes": document, "skipped": _skipped(view)}
        out.table(("FROM", "TO", "", "PORTS"), rows, whole)
    else:
        out.line("nothing changes for the pods that there are")
    is_whole = _tell_skipped(view, out)
    return 0 if is_whole and not found else 1


def graph(args: Namespace, leases: LeaseStore, store: PolicySource, _out: Output) -> int:
    """Write the drawing."""
    view = store.view()
    world = world_of(view, leases.view())
    reached = list(reaches(world, _options(view, args), only=args.namespace))
    met = {group.pods[0].key for each in reached for group in (each.source, each.target)}
    found = [
        group
        for group in groups(world)
        if args.namespace in {"", group.namespace} or group.pods[0].key in met
    ]
    text = draw(found, reached, f"who reaches whom, at revision {view.revision}")
    if args.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        Path(args.file).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--file {args.file}: {exc.strerror}") from exc
    return 0


def _skipped(view: PolicyView) -> list[dict[str, str]]:
    return [{"key": key.key, "reason": key.reason} for key in view.skipped]


def _tell_skipped(view: PolicyView, out: Output) -> bool:
    """Print what could not be read; return whether all could be: answers may be others then."""
    skipped = _skipped(view)
    if skipped and out.is_table:
        out.line("")
        out.table(("UNREADABLE KEY", "REASON"), [list(s.values()) for s in skipped], skipped)
    return not skipped


def _with_new_labels(before: World, planned: PolicyView) -> World:
    """Return the world with policies and namespaces as planned, and the pods as they are."""
    return replace(
        before,
        policies=planned.policies,
        namespaces=planned.namespaces,
        cluster_policies=planned.cluster_policies,
    )


def _options(view: PolicyView, args: Namespace) -> CompileOptions:
    return CompileOptions(view.audited, args.admin_tier)


def _why(decision: Decision) -> str:
    if decision.because:
        return decision.because
    said = [_said(each) for each in (decision.egress, decision.ingress) if each is not None]
    return "; ".join(said) or "no pod is concerned"


def _said(each: Judgement) -> str:
    way, pod = each.direction.value, "/".join(each.pod)
    policies = ", ".join(each.policies)
    if each.audited:
        return f"{way} of {pod}: would be denied by {policies} (audit)"
    if not each.allowed:
        rules = f" ({', '.join(each.rules)})" if each.rules else ""
        return f"{way} of {pod}: denied by {policies}{rules}"
    if each.rules:
        return f"{way} of {pod}: allowed by {', '.join(each.rules)}"
    return f"{way} of {pod}: no policy"


def _record(flow: Flow, decision: Decision) -> dict[str, Any]:
    return {
        "source": str(flow.source),
        "destination": str(flow.destination),
        "protocol": flow.protocol.name,
        "port": flow.port,
        "allowed": decision.allowed,
        "because": decision.because or None,
        **{
            name: None
            if each is None
            else {
                "pod": "/".join(each.pod),
                "allowed": each.allowed,
                "rules": list(each.rules),
                "policies": list(each.policies),
                "audited": each.audited,
            }
            for name, each in (("egress", decision.egress), ("ingress", decision.ingress))
        },
    }


def _spans(spans: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    return [
        {"protocol": Protocol(number).name, "first": first, "last": last}
        for number, first, last in spans
    ]


def _denied(args: Namespace) -> dict[str, int] | None:
    """Return the packets that each policy refused on this node; None without an agent here."""
    try:
        result = call(socket_path(args), "policy", like={"denied": [dict]}, timeout_s=_CALL_S)
    except (AgentUnreachableError, AgentRefusedError):
        return None
    sums: dict[str, int] = {}
    for item in result["denied"]:
        for policy in item.get("policies", []):
            sums[policy] = sums.get(policy, 0) + int(item.get("packets", 0))
    return sums
