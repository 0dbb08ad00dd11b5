"""Network policies as objects: what they say, and what is refused, with the words for it."""

from copy import deepcopy
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.cluster_policy import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    NamedPortMatch,
    NodePeer,
    Tier,
)
from overlay.model.netpol import (
    EVERYTHING,
    NAME_LABEL,
    BlockPeer,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PortMatch,
    Protocol,
    Requirement,
    Rule,
    Selector,
)
from overlay.policy.network.fields import PolicyFormatError
from overlay.policy.network.parse import parse_objects, parse_policy
from tests.unit.odd import outcome, values

HEAD = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n"
)
CLUSTER_HEAD = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
    "metadata: {name: guard}\n"
)


def policy(spec: str, *, strict: bool = True) -> NetworkPolicy:
    return parse_policy(yaml.safe_load(f"{HEAD}spec: {spec}"), strict=strict)


def cluster(spec: str, *, strict: bool = True) -> ClusterNetworkPolicy:
    (found,) = parse_objects(yaml.safe_load(f"{CLUSTER_HEAD}spec: {spec}"), strict=strict)
    assert isinstance(found, ClusterNetworkPolicy)
    return found


def label(key: str, *values: str) -> Selector:
    return Selector((Requirement(key, Operator.IN, frozenset(values)),))


DENY_ALL: tuple[Rule, ...] = ()
ANY = (Rule(),)


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        pytest.param("{}", DENY_ALL, None, id="no rules at all isolate ingress"),
        pytest.param("{podSelector: {}}", DENY_ALL, None, id="an empty selector"),
        pytest.param("{egress: []}", DENY_ALL, None, id="an empty egress isolates nothing"),
        pytest.param("{egress: [{}]}", DENY_ALL, ANY, id="egress rules imply egress"),
        pytest.param("{policyTypes: [Egress]}", None, DENY_ALL, id="egress alone"),
        pytest.param("{policyTypes: []}", DENY_ALL, None, id="empty types are absent types"),
        pytest.param(
            "{policyTypes: [Egress], ingress: [{}]}", None, DENY_ALL, id="rules without their type"
        ),
        pytest.param(
            "{policyTypes: [Ingress], egress: [{}]}", DENY_ALL, None, id="egress not in the types"
        ),
        pytest.param("{policyTypes: [Ingress, Egress]}", DENY_ALL, DENY_ALL, id="both, empty"),
        pytest.param("{ingress: [{}]}", ANY, None, id="an empty rule allows everything"),
        pytest.param("{ingress: [{from: [], ports: []}]}", ANY, None, id="empty lists too"),
        pytest.param("{ingress: [{from: null}]}", ANY, None, id="null is absent"),
    ],
)
def test_defaults_are_those_of_the_api(
    spec: str, ingress: tuple[Rule, ...] | None, egress: tuple[Rule, ...] | None
) -> None:
    assert policy(spec) == NetworkPolicy("shop", "p", EVERYTHING, ingress, egress)


def test_no_spec_is_an_empty_one() -> None:
    assert parse_policy(yaml.safe_load(HEAD)) == policy("{}")


def test_everything_that_a_policy_can_say() -> None:
    found = policy("""
  podSelector:
    matchLabels: {app: web, "example.com/tier": front}
    matchExpressions:
    - {key: env, operator: NotIn, values: [test, dev]}
    - {key: canary, operator: DoesNotExist}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: lb}}
    - namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}
    - {namespaceSelector: {}, podSelector: {}}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    - ipBlock: {cidr: "fd00::/8"}
    ports:
    - {}
    - {protocol: UDP, port: 53}
    - {port: http}
    - {protocol: SCTP, port: 7000, endPort: 7010}
""")
    assert found.pods == Selector(
        (
            Requirement("app", Operator.IN, frozenset({"web"})),
            Requirement("canary", Operator.DOES_NOT_EXIST),
            Requirement("env", Operator.NOT_IN, frozenset({"test", "dev"})),
            Requirement("example.com/tier", Operator.IN, frozenset({"front"})),
        )
    )
    assert found.ingress == (
        Rule(
            (
                PodPeer(label("app", "lb")),
                PodPeer(EVERYTHING, Selector((Requirement("team", Operator.EXISTS),))),
                PodPeer(EVERYTHING, EVERYTHING),
                BlockPeer(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),
                BlockPeer(ip_network("fd00::/8")),
            ),
            (
                PortMatch(),
                PortMatch(Protocol.UDP, 53),
                PortMatch(Protocol.TCP, "http"),
                PortMatch(Protocol.SCTP, 7000, 7010),
            ),
        ),
    )


INGRESS = "{ingress: [{from: [%s]}]}"
PORT = "{ingress: [{ports: [%s]}]}"
FROM = "spec.ingress[0].from[0]"


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        (INGRESS % "{}", FROM, "must have podSelector, namespaceSelector or ipBlock"),
        (INGRESS % "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", FROM, "stands alone"),
        (INGRESS % "{ipBlock: {}}", f"{FROM}.ipBlock.cidr", "is required"),
        (INGRESS % "{ipBlock: {cidr: 10.0.0.0}}", f"{FROM}.ipBlock.cidr", "must be a network"),
        (INGRESS % "{ipBlock: {cidr: 10.0.0.0/33}}", f"{FROM}.ipBlock.cidr", "must be a network"),
        (INGRESS % '{ipBlock: {cidr: "fe80::%eth0/64"}}', f"{FROM}.ipBlock.cidr", "a network"),
        (INGRESS % '{ipBlock: {cidr: "::ffff:10.0.0.0/104"}}', f"{FROM}.ipBlock.cidr", "IPv4"),
        (
            INGRESS % "{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}",
            f"{FROM}.ipBlock.except[0]",
            "must lie within cidr 10.0.0.0/8",
        ),
        (
            INGRESS % "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}",
            f"{FROM}.ipBlock.except[0]",
            "and be smaller",
        ),
        (
            INGRESS % '{ipBlock: {cidr: 10.0.0.0/8, except: ["fd00::/16"]}}',
            f"{FROM}.ipBlock.except[0]",
            "must lie within",
        ),
        (INGRESS % "5", FROM, "must be a mapping"),
        ("{ingress: {}}", "spec.ingress", "must be a list"),
        (PORT % "{port: 0}", "spec.ingress[0].ports[0].port", "from 1 to 65535"),
        (PORT % "{port: 65536}", "spec.ingress[0].ports[0].port", "from 1 to 65535"),
        (PORT % "{port: true}", "spec.ingress[0].ports[0].port", "a whole number"),
        (PORT % "{port: 80.0}", "spec.ingress[0].ports[0].port", "a whole number"),
        (PORT % '{port: "80"}', "spec.ingress[0].ports[0].port", "without quotes"),
        (PORT % "{port: HTTP}", "spec.ingress[0].ports[0].port", "at most 15 of a-z"),
        (PORT % "{port: a--b}", "spec.ingress[0].ports[0].port", "at most 15 of a-z"),
        (PORT % "{port: a-port-name-of-16}", "spec.ingress[0].ports[0].port", "at most 15"),
        (PORT % '{port: "1-2"}', "spec.ingress[0].ports[0].port", "a letter among them"),
        (PORT % "{endPort: 5}", "spec.ingress[0].ports[0].endPort", "without port"),
        (PORT % "{port: http, endPort: 5}", "spec.ingress[0].ports[0].endPort", "port's name"),
        (PORT % "{port: 6, endPort: 5}", "spec.ingress[0].ports[0].endPort", "less than port 6"),
        (PORT % "{protocol: ICMP}", "spec.ingress[0].ports[0].protocol", "TCP or UDP or SCTP"),
        (PORT % "{protocol: tcp}", "spec.ingress[0].ports[0].protocol", "TCP or UDP or SCTP"),
        ("{policyTypes: [ingress]}", "spec.policyTypes[0]", "must be Ingress or Egress"),
        ("{policyTypes: [Ingress, Egress, Egress]}", "spec.policyTypes", "more than two"),
        ("{podSelector: {matchLabels: {a: 5}}}", "spec.podSelector.matchLabels[a]", "in quotes"),
        ("{podSelector: {matchLabels: {a: -x}}}", "spec.podSelector.matchLabels[a]", "at most 63"),
        ("{podSelector: {matchLabels: {/a: x}}}", "spec.podSelector.matchLabels", "label key '/a'"),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
            "spec.podSelector.matchExpressions[0].operator",
            "must be In or NotIn or Exists or DoesNotExist",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
            "spec.podSelector.matchExpressions[0]",
            "needs values",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "spec.podSelector.matchExpressions[0].values",
            "takes no values",
        ),
        (
            "{podSelector: {matchExpressions: [{operator: Exists}]}}",
            "spec.podSelector.matchExpressions[0].key",
            "is required",
        ),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_the_api_server_refuses_names_its_field(
    spec: str, path: str, words: str, strict: bool
) -> None:
    with pytest.raises(PolicyFormatError) as caught:
        policy(spec, strict=strict)
    assert caught.value.path == path
    assert words in caught.value.problem
    assert str(caught.value).startswith("NetworkPolicy shop/p: spec.")


def test_leading_zeros_of_an_older_api_server_are_decimal() -> None:
    found = policy(INGRESS % "{ipBlock: {cidr: 010.020.0.0/16}}", strict=False)
    assert found.ingress == (Rule((BlockPeer(ip_network("10.20.0.0/16")),)),)
    with pytest.raises(PolicyFormatError, match="without zeros in front"):
        policy(INGRESS % "{ipBlock: {cidr: 010.020.0.0/16}}")


def test_bits_behind_a_prefix_are_cleared() -> None:
    found = policy(INGRESS % "{ipBlock: {cidr: 10.1.2.3/8}}")
    assert found.ingress == (Rule((BlockPeer(ip_network("10.0.0.0/8")),)),)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("spec: {ingres: []}", "spec.ingres"),
        ("spec: {ingress: [{form: []}]}", "spec.ingress[0].form"),
        ("spec: {podSelector: {matchlabels: {}}}", "spec.podSelector.matchlabels"),
        ("sepc: {}", "sepc"),
    ],
)
def test_unknown_fields_are_refused_of_people_and_ignored_of_the_api_server(
    text: str, path: str
) -> None:
    document = yaml.safe_load(HEAD + text)
    with pytest.raises(PolicyFormatError, match="there is no such field") as caught:
        parse_policy(document)
    assert caught.value.path == path
    parse_policy(document, strict=False)


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ("{namespace: shop}", "metadata.name"),
        ("{name: UPPER}", "metadata.name"),
        ("{name: 'a\\nb'}", "metadata.name"),
        ("{name: a, namespace: a.b}", "metadata.namespace"),
        ("{name: 5}", "metadata.name"),
        ("null", "metadata"),
    ],
)
def test_names_that_cannot_be_are_refused_in_one_line(metadata: str, path: str) -> None:
    text = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {metadata}\n"
    with pytest.raises(PolicyFormatError) as caught:
        parse_policy(yaml.safe_load(text))
    assert caught.value.path == path
    assert str(caught.value).isprintable()


def test_kind_and_version_are_looked_at() -> None:
    document = {**yaml.safe_load(HEAD), "apiVersion": "networking.k8s.io/v2"}
    with pytest.raises(PolicyFormatError, match=r"must be networking\.k8s\.io/v1"):
        parse_policy(document)
    with pytest.raises(PolicyFormatError, match="kind 'Service'"):
        parse_objects({"kind": "Service"})


def test_a_namespace_that_is_not_named_is_the_callers() -> None:
    document = yaml.safe_load(HEAD.replace(", namespace: shop", ""))
    assert parse_policy(document).namespace == "default"
    assert parse_policy(document, namespace="shop").namespace == "shop"


def test_lists_and_several_documents_are_one_after_another() -> None:
    one = yaml.safe_load(HEAD)
    bare = {"metadata": {"name": "q", "namespace": "shop"}, "spec": {}}
    listed = {"apiVersion": "v1", "kind": "List", "items": [one, None]}
    of_policies = {
        "kind": "NetworkPolicyList",
        "metadata": {"resourceVersion": "7"},
        "items": [bare],
    }
    found = parse_objects([one, None, listed, of_policies], strict=False)
    assert [each.name for each in found] == ["p", "p", "q"]
    nested: dict[str, Any] = {"kind": "List", "items": []}
    for _ in range(10):
        nested = {"kind": "List", "items": [nested]}
    with pytest.raises(PolicyFormatError, match="kind"):
        parse_objects(nested)


def test_pods_and_namespaces_as_the_api_server_has_them() -> None:
    pod = yaml.safe_load("""
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  containers:
  - name: c
    ports:
    - {name: http, containerPort: 8080}
    - {containerPort: 9}
    - {name: dns, containerPort: 53, protocol: UDP}
  initContainers:
  - {name: sidecar, restartPolicy: Always, ports: [{name: mesh, containerPort: 15000}]}
  - {name: once, ports: [{name: gone, containerPort: 1}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}, {ip: "fd00::2"}]}
""")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    assert parse_objects([pod, namespace]) == (
        Pod(
            "shop",
            "web-0",
            frozenset({ip_address("10.244.1.2"), ip_address("fd00::2")}),
            {"app": "web"},
            "n1",
            (
                NamedPort("http", 8080),
                NamedPort("dns", 53, Protocol.UDP),
                NamedPort("mesh", 15000),
            ),
        ),
        Namespace("shop", {NAME_LABEL: "shop"}),
    )
    finished = {**pod, "status": {"phase": "Failed", "podIP": "10.244.1.2"}}
    on_host = {**pod, "spec": {"hostNetwork": True}}
    for document in (finished, on_host):
        (found,) = parse_objects(document)
        assert isinstance(found, Pod)
        assert not found.counts


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"status": {"podIP": "10.0.0"}}, "status.podIP"),
        ({"status": {"podIPs": [{"ip": "fe80::1%eth0"}]}}, "status.podIPs[0].ip"),
        ({"status": []}, "status"),
        ({"spec": {"hostNetwork": "yes"}}, "spec.hostNetwork"),
        (
            {"spec": {"containers": [{"ports": [{"name": "a", "containerPort": "x"}]}]}},
            "spec.containers[0].ports[0].containerPort",
        ),
    ],
)
def test_a_pod_that_cannot_be_names_its_field(change: dict[str, Any], path: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **change}
    with pytest.raises(PolicyFormatError) as caught:
        parse_objects(pod)
    assert caught.value.path == path


SUBJECT = "tier: Admin, priority: 5, subject: {namespaces: {}}"


def test_everything_that_a_cluster_policy_can_say() -> None:
    found = cluster("""
  tier: Baseline
  priority: 1000
  subject: {pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {}}}
  ingress:
  - {name: monitoring, action: Accept, from: [{namespaces: {matchLabels: {team: b}}}]}
  egress:
  - action: Deny
    to:
    - nodes: {}
    - networks: [10.0.0.0/8, "fd00::/8"]
    protocols:
    - {tcp: {destinationPort: {number: 80}}}
    - {udp: {destinationPort: {range: {start: 1, end: 9}}}}
  - action: Pass
    to: [{pods: {podSelector: {matchLabels: {app: web}}}}]
    protocols: [{destinationNamedPort: http}, {sctp: {destinationPort: {number: 9}}}]
""")
    assert found == ClusterNetworkPolicy(
        "guard",
        Tier.BASELINE,
        1000,
        PodPeer(EVERYTHING, label("team", "a")),
        (
            ClusterRule(
                Action.ACCEPT, (PodPeer(EVERYTHING, label("team", "b")),), None, "monitoring"
            ),
        ),
        (
            ClusterRule(
                Action.DENY,
                (
                    NodePeer(EVERYTHING),
                    BlockPeer(ip_network("10.0.0.0/8")),
                    BlockPeer(ip_network("fd00::/8")),
                ),
                (PortMatch(Protocol.TCP, 80), PortMatch(Protocol.UDP, 1, 9)),
            ),
            ClusterRule(
                Action.PASS,
                (PodPeer(label("app", "web"), EVERYTHING),),
                (NamedPortMatch("http"), PortMatch(Protocol.SCTP, 9)),
            ),
        ),
    )


RULE = "{%s, ingress: [%s]}"
EMPTY_RANGE = "{tcp: {destinationPort: {range: {start: 9, end: 9}}}}"
TO = "{%s, egress: [{action: Deny, to: [%s]}]}"


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ("{tier: Top, priority: 1, subject: {namespaces: {}}}", "spec.tier", "Admin or Baseline"),
        ("{tier: Admin, subject: {namespaces: {}}}", "spec.priority", "is required"),
        ("{tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority", "0 to 1000"),
        ("{tier: Admin, priority: 1, subject: {}}", "spec.subject", "exactly one"),
        (
            "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}",
            "spec.subject",
            "exactly one",
        ),
        (RULE % (SUBJECT, "{action: Accept}"), "spec.ingress[0].from", "is required"),
        (RULE % (SUBJECT, "{action: Accept, from: []}"), "spec.ingress[0].from", "at least one"),
        (
            RULE % (SUBJECT, "{action: Allow, from: [{namespaces: {}}]}"),
            "spec.ingress[0].action",
            "Accept or Deny or Pass",
        ),
        (
            RULE % (SUBJECT, "{action: Accept, from: [{networks: [10.0.0.0/8]}]}"),
            "spec.ingress[0].from[0].networks",
            "no such field",
        ),
        (TO % (SUBJECT, "{domainNames: [example.com]}"), "spec.egress[0].to[0]", "use networks"),
        (TO % (SUBJECT, "{networks: [10.0.0.0]}"), "spec.egress[0].to[0].networks[0]", "a network"),
        (
            RULE
            % (
                SUBJECT,
                f"{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{EMPTY_RANGE}]}}",
            ),
            "spec.ingress[0].protocols[0].tcp.destinationPort.range.end",
            "greater than start 9",
        ),
        (
            TO % (SUBJECT, "{nodes: {}}], protocols: [{tcp: {}}"),
            "spec.egress[0].protocols[0].tcp",
            "must name its destinationPort",
        ),
        (
            TO % (SUBJECT, "{nodes: {}}], protocols: [{destinationNamedPort: a}"),
            "spec.egress[0]",
            "pods and namespaces only",
        ),
        (
            RULE % (SUBJECT, ", ".join(["{action: Deny, from: [{namespaces: {}}]}"] * 26)),
            "spec.ingress",
            "25 at most",
        ),
    ],
)
def test_what_is_wrong_with_a_cluster_policy_names_its_field(
    spec: str, path: str, words: str
) -> None:
    with pytest.raises(PolicyFormatError) as caught:
        cluster(spec)
    assert caught.value.path == path
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("action", "peers", "becomes"),
    [
        ("Accept", "{domainNames: [a.example]}", ClusterRule(Action.ACCEPT, ())),
        ("Deny", "{somethingNew: {}}", ClusterRule(Action.DENY, None)),
        ("Pass", "{nodes: {}}, {}", ClusterRule(Action.DENY, None)),
        (
            "Accept",
            "{nodes: {}}], protocols: [{icmp: {}}, {tcp: {}}",
            ClusterRule(Action.ACCEPT, (), ()),
        ),
        (
            "Deny",
            "{nodes: {}}], protocols: [{tcp: {somethingNew: 1}}",
            ClusterRule(Action.DENY, None),
        ),
    ],
)
def test_peers_that_nobody_understands_fail_closed(
    action: str, peers: str, becomes: ClusterRule
) -> None:
    spec = f"{{{SUBJECT}, egress: [{{action: {action}, to: [{peers}]}}]}}"
    assert cluster(spec, strict=False).egress == (becomes,)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, each in value.items():
            found += _places(each, (*path, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            found += _places(each, (*path, number))
    return found


_WHOLE: Any = yaml.safe_load(
    HEAD
    + """
spec:
  podSelector: {matchLabels: {a: b}, matchExpressions: [{key: k, operator: In, values: [v]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - {podSelector: {}, namespaceSelector: {}}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{protocol: TCP, port: 80, endPort: 90}]
  egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]
"""
)
_WHOLE_CLUSTER: Any = yaml.safe_load(
    CLUSTER_HEAD
    + """
spec:
  tier: Admin
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {}}}
  egress:
  - name: a
    action: Deny
    to: [{networks: [10.0.0.0/8]}, {nodes: {}}]
    protocols: [{tcp: {destinationPort: {range: {start: 1, end: 2}}}}]
"""
)


@given(st.sampled_from([_WHOLE, _WHOLE_CLUSTER]), st.data(), st.booleans())
def test_whatever_stands_in_a_field_is_read_or_refused(
    whole: Any, data: st.DataObject, strict: bool
) -> None:
    document = deepcopy(whole)
    *way, last = data.draw(st.sampled_from([place for place in _places(document) if place]))
    inner = document
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(values)
    found = outcome(PolicyFormatError, partial(parse_objects, document, strict=strict))
    assert isinstance(found, tuple) or str(found).isprintable()
