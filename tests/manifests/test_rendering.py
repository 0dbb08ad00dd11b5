"""Kustomize and the chart make the same objects, and Kubernetes takes them."""

from typing import Any

import pytest

from overlay.model.network import parse_network_config
from tests.manifests.renderers import (
    CHART,
    FORMS,
    KUSTOMIZE,
    by_name,
    kustomized,
    templated,
    values_of,
)


def newest_versions() -> list[str]:
    """Return the three newest minor versions that there are schemas for."""
    try:
        from kubernetes_validate.utils import all_versions, major_minor
    except ImportError:
        return ["none"]  # the tier says why
    minors = dict.fromkeys(major_minor(version) for version in all_versions())
    return list(minors)[-3:]


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(form: str) -> dict[str, Any]:
    return kustomized(KUSTOMIZE / "overlays" / form)


def test_chart_renders_the_same_objects(form: str, objects: dict[str, Any]) -> None:
    rendered = templated(values_of(form))
    assert list(rendered) == list(objects)
    for name, item in objects.items():
        assert rendered[name] == item, name


@pytest.mark.parametrize("version", newest_versions())
def test_every_object_is_valid(objects: dict[str, Any], version: str) -> None:
    from kubernetes_validate import validate

    for item in objects.values():
        assert validate(item, version, strict=True) == version


@pytest.mark.parametrize("version", newest_versions())
def test_reset_job_is_valid(version: str) -> None:
    from kubernetes_validate import validate

    (job,) = by_name((KUSTOMIZE / "reset-job.yaml").read_text()).values()
    assert validate(job, version, strict=True) == version


def test_schemas_refuse_an_unknown_key(objects: dict[str, Any]) -> None:
    from kubernetes_validate import ValidationError, validate

    daemon = objects["DaemonSet/overlayd"]
    wrong = {**daemon, "spec": {**daemon["spec"], "updatePolicy": {}}}
    with pytest.raises(ValidationError):
        validate(wrong, newest_versions()[-1], strict=True)


def test_plain_apply_is_the_kubernetes_form() -> None:
    assert kustomized(KUSTOMIZE) == kustomized(KUSTOMIZE / "overlays/kubernetes")


def test_network_config_is_one(objects: dict[str, Any]) -> None:
    config = objects.get("ConfigMap/overlay-network")
    if config is not None:
        parse_network_config(config["data"]["net-conf.json"])


def test_chart_has_nothing_to_complain_of() -> None:
    import helm_python

    report = helm_python.lint(CHART, strict=True)
    found = [one for one in report["messages"] if one["severity"] > 1]
    assert (report["errors"], found) == ([], [])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"mode": "zookeeper"}, "mode"),
        ({"netwrk": {}}, "netwrk"),
        ({"network": {"Netwrk": "10.0.0.0/16"}}, "Netwrk"),
        ({"network": {"Egress": {"Mode": "open"}}}, "Mode"),
        ({"etcd": {"endpoints": ["127.0.0.1:2379"]}}, "endpoints"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"extraArgs": ["iface=eth0"]}, "extraArgs"),
        ({"cni": {"binDir": "opt/cni/bin"}}, "binDir"),
        ({"maxUnavailable": 0}, "maxUnavailable"),
    ],
)
def test_wrong_value_is_named(values: dict[str, Any], key: str) -> None:
    from helm_python import HelmValuesError

    with pytest.raises(HelmValuesError, match=key):
        templated(values)


def test_values_reach_the_objects() -> None:
    endpoints = ["https://192.0.2.10:2379", "https://192.0.2.11:2379"]
    rendered = templated(
        {
            "mode": "etcd",
            "namespace": {"name": "fabric", "create": False},
            "image": {"repository": "registry.example/overlay", "digest": "sha256:" + 64 * "a"},
            "etcd": {"endpoints": endpoints, "cafile": "ca.crt"},
            "extraArgs": ["--iface-regex=^eth"],
        }
    )
    assert "Namespace/fabric" not in rendered
    assert {item["metadata"]["namespace"] for item in rendered.values()} == {"fabric"}
    data = rendered["ConfigMap/overlay-etcd"]["data"]
    assert data["OVERLAYD_ETCD_ENDPOINTS"] == ",".join(endpoints)
    assert data["OVERLAYD_ETCD_CAFILE"] == "/etc/overlay/etcd/ca.crt"
    pod = rendered["DaemonSet/overlayd"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][-1] == "--iface-regex=^eth"
    images = {c["image"] for c in (*pod["containers"], *pod["initContainers"])}
    assert images == {"registry.example/overlay@sha256:" + 64 * "a"}
