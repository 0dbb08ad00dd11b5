"""What the containers may do, and that our programs take what they are given."""

from typing import Any, Final

import pytest
import yaml

from overlay import __version__
from overlay.agent.flag_parser import flag_parser
from overlay.agent.probe import QUESTIONS
from overlay.cli.main import parser
from tests.manifests.renderers import CHART, FORMS, KUSTOMIZE, MANIFESTS, by_name, kustomized

EXCLUDED: Final = "overlay/exclude"
GUIDE: Final = MANIFESTS.parent / "docs/kubernetes.md"
# Every path of the host that a pod of ours sees; docs/kubernetes.md has the same table.
HOST_PATHS: Final = {
    "/run/overlay",
    "/opt/cni/bin",
    "/etc/cni/net.d",
    "/proc/sys/net",
    "/run/xtables.lock",
    "/var/lib/cni/networks",  # on nodes that move from flannel
}
PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")


def pods_of(form: str) -> list[dict[str, Any]]:
    if form == "reset":
        objects = by_name((KUSTOMIZE / "reset-job.yaml").read_text())
    else:
        objects = kustomized(KUSTOMIZE / "overlays" / form)
    return [
        item["spec"]["template"]["spec"]
        for item in objects.values()
        if item["kind"] in {"DaemonSet", "Job"}
    ]


@pytest.fixture(scope="module", params=[*FORMS, "reset"])
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    (found,) = pods_of(request.param)
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_no_container_has_more_than_it_needs(pod: dict[str, Any]) -> None:
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert {"hostPID", "hostIPC"}.isdisjoint(pod)
    for container in containers(pod):
        given = container["securityContext"]
        added = given["capabilities"].get("add", [])
        assert set(added) <= {"NET_ADMIN", "NET_RAW"}, container["name"]
        assert given["capabilities"]["drop"] == ["ALL"]
        assert given["allowPrivilegeEscalation"] is False
        assert given["readOnlyRootFilesystem"] is True
        assert "privileged" not in given
        assert {"cpu", "memory"} == set(container["resources"]["limits"])
        assert {"cpu", "memory"} == set(container["resources"]["requests"])
    paths = {v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    assert paths <= HOST_PATHS


def test_every_taint_is_tolerated(pod: dict[str, Any]) -> None:
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["hostNetwork"] is True


def test_node_that_is_excluded_loses_its_agent() -> None:
    for form in FORMS:
        (pod,) = pods_of(form)
        chosen = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        expressions = [{"key": EXCLUDED, "operator": "DoesNotExist"}]
        assert chosen == {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    # The Job must come there all the same; it is bound to its node by name.
    (job,) = pods_of("reset")
    assert job["nodeName"] == "NODE"
    assert "affinity" not in job
    assert f"kubectl label node $node {EXCLUDED}=true" in GUIDE.read_text()


def test_guide_names_every_path_of_the_host() -> None:
    rows = [line.split("`") for line in GUIDE.read_text().splitlines() if line.startswith("| `/")]
    assert {row[1] for row in rows} == HOST_PATHS


def test_every_mount_has_its_volume(pod: dict[str, Any]) -> None:
    mounted = {m["name"] for c in containers(pod) for m in c["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_our_programs_take_their_arguments(pod: dict[str, Any]) -> None:
    hooks = [c.get("lifecycle", {}).get("preStop", {}).get("exec", {}) for c in containers(pod)]
    commands = [c["command"] + c.get("args", []) for c in containers(pod)]
    commands += [hook["command"] for hook in hooks if hook]
    probes = [c[p]["exec"]["command"] for c in containers(pod) for p in PROBES if p in c]
    for program, *words in [*commands, *probes]:
        if program == "overlayd" and words[:1] == ["probe"]:
            assert words[1:] in [[question] for question in QUESTIONS]
        elif program == "overlayd":
            flag_parser({}).parse_args(words)
        else:
            assert program == "overlayctl"
            parser().parse_args(words)


@pytest.mark.parametrize("form", FORMS)
def test_probes_ask_the_agent_of_their_own_container(form: str) -> None:
    """By a port of the node they would ask whichever agent has it."""
    (agent,) = (c for pod in pods_of(form) for c in pod["containers"])
    questions = [agent[name]["exec"]["command"] for name in PROBES]
    assert questions == [["overlayd", "probe", q] for q in ("live", "ready", "live")]
    assert "--wait-for-host" in agent["args"]


@pytest.mark.parametrize("form", FORMS)
def test_only_the_api_needs_a_token(form: str) -> None:
    objects = kustomized(KUSTOMIZE / "overlays" / form)
    (pod,) = pods_of(form)
    needs_api = form != "etcd"
    assert pod["automountServiceAccountToken"] is needs_api
    assert objects["ServiceAccount/overlayd"]["automountServiceAccountToken"] is False
    # What is in them is tests/kube/test_kube_roles.py's: by what the store really asks.
    for kind in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
        assert (f"{kind}/overlayd" in objects) is needs_api


def test_image_and_chart_have_our_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    for form in (*FORMS, "reset"):
        for pod in pods_of(form):
            images = {container["image"] for container in containers(pod)}
            assert images == {f"overlay-fabric:{__version__}"}
