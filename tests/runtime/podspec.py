"""What a kubelet asks a runtime for, made of a pod's spec as it stands in a manifest.

Sources: kubernetes/pkg/kubelet/kuberuntime (labels.go, security_context.go,
kuberuntime_container_linux.go), and what the API server and the kubelet add to
a pod by themselves: the account's token and the address of the API.

A field that is not translated here is an error, so that no test passes by
leaving out what a manifest says.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_NODE: Final = 2  # NamespaceMode of the CRI; 1 is the container's own
_RUNTIME_DEFAULT: Final = 0  # SecurityProfile.ProfileType
_PERIOD_US: Final = 100_000
# What a kubelet hides where procMount is Default: pkg/securitycontext/util.go.
_MASKED: Final = [
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
    "/sys/firmware",
]
_READ_ONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# What the scheduler, the controllers and the garbage collector read, and a runtime does not.
_FOR_OTHERS: Final = {
    *("affinity", "dnsPolicy", "nodeSelector", "nodeName", "priorityClassName", "tolerations"),
    *("serviceAccountName", "enableServiceLinks", "restartPolicy"),
    *("containers", "initContainers", "terminationGracePeriodSeconds"),
}

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """What a pod's spec refers to on one node; ``volumes`` is where the kubelet keeps its own."""

    node: str
    volumes: Path
    account: Path  # the files of the pod's service account
    api: tuple[str, int]
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def sandbox(spec: Spec, metadata: Spec, cgroup: str, logs: Path) -> Spec:
    """Return the CRI's PodSandboxConfig."""
    known = {*_FOR_OTHERS, "hostNetwork", "securityContext", "volumes"}
    _refuse(spec, {*known, "automountServiceAccountToken"})
    assert spec["hostNetwork"] is True
    return {
        "metadata": metadata,
        "log_directory": str(logs),
        "linux": {
            "cgroup_parent": f"/{cgroup}",
            "security_context": {"namespace_options": _namespaces(), "seccomp": _seccomp(spec)},
        },
    }


def container(spec: Spec, told: Spec, place: Place, attempt: int) -> Spec:
    """Return the CRI's ContainerConfig of ``told``, one of the containers of ``spec``."""
    probes = {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle"}
    known = {*("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom")}
    _refuse(told, {*probes, *known, "resources", "securityContext", "volumeMounts"})
    return {
        "metadata": {"name": told["name"], "attempt": attempt},
        "image": {"image": told["image"]},
        "command": told["command"],
        "args": told.get("args", []),
        "envs": [{"key": k, "value": v} for k, v in _environment(spec, told, place)],
        "mounts": [*_mounts(spec, told, place)],
        "log_path": f"{told['name']}.{attempt}.log",
        "linux": {
            "resources": _resources(told["resources"]),
            "security_context": _confined(spec, told["securityContext"]),
        },
    }


def _confined(spec: Spec, told: Spec) -> Spec:
    known = {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem", "runAsUser"}
    _refuse(told, known)
    return {
        "capabilities": {
            "add_capabilities": told["capabilities"].get("add", []),
            "drop_capabilities": told["capabilities"]["drop"],
        },
        "namespace_options": _namespaces(),
        "run_as_user": {"value": told["runAsUser"]},
        "readonly_rootfs": told["readOnlyRootFilesystem"],
        "no_new_privs": not told["allowPrivilegeEscalation"],
        "masked_paths": _MASKED,
        "readonly_paths": _READ_ONLY,
        "seccomp": _seccomp(spec),
    }


def _namespaces() -> Spec:
    return {"network": _NODE, "pid": 1, "ipc": 0}


def _seccomp(spec: Spec) -> Spec:
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    return {"profile_type": _RUNTIME_DEFAULT}


def _resources(told: Spec) -> Spec:
    limits, requests = told["limits"], told["requests"]
    return {
        "cpu_period": _PERIOD_US,
        "cpu_quota": int(_cpus(limits["cpu"]) * _PERIOD_US),
        "cpu_shares": int(_cpus(requests["cpu"]) * 1024),
        "memory_limit_in_bytes": mebibytes(limits["memory"]) << 20,
    }


def _cpus(text: str) -> float:
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def mebibytes(text: str) -> int:
    """Return an amount of memory as manifests write it.

    >>> mebibytes("96Mi")
    96
    """
    assert text.endswith("Mi"), text
    return int(text[:-2])


def _environment(spec: Spec, told: Spec, place: Place) -> Iterator[tuple[str, str]]:
    del spec
    yield "KUBERNETES_SERVICE_HOST", place.api[0]
    yield "KUBERNETES_SERVICE_PORT", str(place.api[1])
    for source in told.get("envFrom", []):
        yield from place.config_maps[source["configMapRef"]["name"]].items()
    for one in told.get("env", []):
        if "value" in one:
            yield one["name"], one["value"]
        else:
            assert one["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
            yield one["name"], place.node


def _mounts(spec: Spec, told: Spec, place: Place) -> Iterator[Spec]:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in told["volumeMounts"]:
        yield {
            "container_path": mount["mountPath"],
            "host_path": str(_source(volumes[mount["name"]], place)),
            "readonly": mount.get("readOnly", False),
        }
    if spec["automountServiceAccountToken"]:
        yield {"container_path": ACCOUNT, "host_path": str(place.account), "readonly": True}


def _source(volume: Spec, place: Place) -> Path:
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    folder = place.volumes / str(volume["name"])
    if not folder.exists():
        folder.mkdir(parents=True)
        for name, text in place.config_maps[volume["configMap"]["name"]].items():
            (folder / name).write_text(text)
    return folder


def host_paths(spec: Spec) -> dict[str, str]:
    """Return the paths of the host that a pod sees, and what is to be made where one is absent."""
    told = [volume["hostPath"] for volume in spec["volumes"] if "hostPath" in volume]
    return {path["path"]: path["type"] for path in told}


def _refuse(told: Spec, known: set[str]) -> None:
    assert not told.keys() - known, f"not translated: {sorted(told.keys() - known)}"
