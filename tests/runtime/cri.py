"""A client of the Container Runtime Interface: the calls by which a kubelet runs pods.

Source: kubernetes/cri-api, pkg/apis/runtime/v1/api.proto. Debian 12 has no
crictl, and the stubs on PyPI are from before the version 1; so the messages
that are asked for stand here, by name, number and type.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

DEADLINE_S: Final = 60
_PACKAGE: Final = "runtime.v1"
_KIND: Final = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
}
# Per message: field, number, type; a list where the type begins with "*". Enumerations
# are numbers, on the wire and here.
_MESSAGES: Final[Mapping[str, tuple[tuple[str, int, str], ...]]] = {
    "PodSandboxMetadata": (
        ("name", 1, "string"),
        ("uid", 2, "string"),
        ("namespace", 3, "string"),
        ("attempt", 4, "uint32"),
    ),
    "PortMapping": (
        ("protocol", 1, "int32"),  # 0 is TCP
        ("container_port", 2, "int32"),
        ("host_port", 3, "int32"),
    ),
    "NamespaceOption": (("network", 1, "int32"), ("pid", 2, "int32"), ("ipc", 3, "int32")),
    "SecurityProfile": (("profile_type", 1, "int32"), ("localhost_ref", 2, "string")),
    "LinuxSandboxSecurityContext": (
        ("namespace_options", 1, "NamespaceOption"),
        ("seccomp", 9, "SecurityProfile"),
    ),
    "LinuxPodSandboxConfig": (
        ("cgroup_parent", 1, "string"),
        ("security_context", 2, "LinuxSandboxSecurityContext"),
    ),
    "PodSandboxConfig": (
        ("metadata", 1, "PodSandboxMetadata"),
        ("hostname", 2, "string"),
        ("log_directory", 3, "string"),
        ("port_mappings", 5, "*PortMapping"),
        ("linux", 8, "LinuxPodSandboxConfig"),
    ),
    "KeyValue": (("key", 1, "string"), ("value", 2, "string")),
    "Int64Value": (("value", 1, "int64"),),
    "Mount": (
        ("container_path", 1, "string"),
        ("host_path", 2, "string"),
        ("readonly", 3, "bool"),
    ),
    "Capability": (("add_capabilities", 1, "*string"), ("drop_capabilities", 2, "*string")),
    "LinuxContainerResources": (
        ("cpu_period", 1, "int64"),
        ("cpu_quota", 2, "int64"),
        ("cpu_shares", 3, "int64"),
        ("memory_limit_in_bytes", 4, "int64"),
    ),
    "LinuxContainerSecurityContext": (
        ("capabilities", 1, "Capability"),
        ("namespace_options", 3, "NamespaceOption"),
        ("run_as_user", 5, "Int64Value"),
        ("readonly_rootfs", 7, "bool"),
        ("no_new_privs", 11, "bool"),
        ("masked_paths", 13, "*string"),
        ("readonly_paths", 14, "*string"),
        ("seccomp", 15, "SecurityProfile"),
    ),
    "LinuxContainerConfig": (
        ("resources", 1, "LinuxContainerResources"),
        ("security_context", 2, "LinuxContainerSecurityContext"),
    ),
    "ContainerMetadata": (("name", 1, "string"), ("attempt", 2, "uint32")),
    "ContainerConfig": (
        ("metadata", 1, "ContainerMetadata"),
        ("image", 2, "ImageSpec"),
        ("command", 3, "*string"),
        ("args", 4, "*string"),
        ("envs", 6, "*KeyValue"),
        ("mounts", 7, "*Mount"),
        ("log_path", 11, "string"),
        ("linux", 15, "LinuxContainerConfig"),
    ),
    "CreateContainerRequest": (
        ("pod_sandbox_id", 1, "string"),
        ("config", 2, "ContainerConfig"),
        ("sandbox_config", 3, "PodSandboxConfig"),
    ),
    "CreateContainerResponse": (("container_id", 1, "string"),),
    "StartContainerRequest": (("container_id", 1, "string"),),
    "StartContainerResponse": (),
    "StopContainerRequest": (("container_id", 1, "string"), ("timeout", 2, "int64")),
    "StopContainerResponse": (),
    "ContainerStatus": (("state", 3, "int32"), ("exit_code", 7, "int32"), ("reason", 10, "string")),
    "ContainerStatusRequest": (("container_id", 1, "string"), ("verbose", 2, "bool")),
    "ContainerStatusResponse": (("status", 1, "ContainerStatus"), ("info", 2, "*KeyValue")),
    "ExecSyncRequest": (
        ("container_id", 1, "string"),
        ("cmd", 2, "*string"),
        ("timeout", 3, "int64"),
    ),
    "ExecSyncResponse": (("stdout", 1, "bytes"), ("stderr", 2, "bytes"), ("exit_code", 3, "int32")),
    "PodIP": (("ip", 1, "string"),),
    "PodSandboxNetworkStatus": (("ip", 1, "string"), ("additional_ips", 2, "*PodIP")),
    "PodSandboxStatus": (
        ("id", 1, "string"),
        ("state", 3, "int32"),
        ("network", 5, "PodSandboxNetworkStatus"),
    ),
    "PodSandbox": (("id", 1, "string"),),
    "RuntimeCondition": (("type", 1, "string"), ("reason", 3, "string"), ("message", 4, "string")),
    "RuntimeStatus": (("conditions", 1, "*RuntimeCondition"),),
    "StatusRequest": (),
    "StatusResponse": (("status", 1, "RuntimeStatus"),),
    "RunPodSandboxRequest": (("config", 1, "PodSandboxConfig"),),
    "RunPodSandboxResponse": (("pod_sandbox_id", 1, "string"),),
    "StopPodSandboxRequest": (("pod_sandbox_id", 1, "string"),),
    "StopPodSandboxResponse": (),
    "RemovePodSandboxRequest": (("pod_sandbox_id", 1, "string"),),
    "RemovePodSandboxResponse": (),
    "PodSandboxStatusRequest": (("pod_sandbox_id", 1, "string"), ("verbose", 2, "bool")),
    # A map is a list of pairs on the wire, and info of the runtime's own is one.
    "PodSandboxStatusResponse": (("status", 1, "PodSandboxStatus"), ("info", 2, "*KeyValue")),
    "ImageSpec": (("image", 1, "string"),),
    "Image": (("id", 1, "string"),),
    "ImageStatusRequest": (("image", 1, "ImageSpec"),),
    "ImageStatusResponse": (("image", 1, "Image"),),
    "ListPodSandboxRequest": (),
    "ListPodSandboxResponse": (("items", 1, "*PodSandbox"),),
}


class Cri:
    """RuntimeService and ImageService behind a unix socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def close(self) -> None:
        self._channel.close()

    def call(self, name: str, **fields: Any) -> dict[str, Any]:
        """Return the answer to one call, both in protobuf's JSON form.

        Raises grpc.RpcError with the runtime's own words.
        """
        service = "ImageService" if name.startswith("Image") else "RuntimeService"
        request = _CLASSES[f"{name}Request"]
        answer = self._channel.unary_unary(
            f"/{_PACKAGE}.{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=_CLASSES[f"{name}Response"].FromString,
        )(json_format.ParseDict(fields, request()), timeout=DEADLINE_S)
        found: dict[str, Any] = json_format.MessageToDict(answer, preserving_proto_field_name=True)
        return found


def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/cri.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            word = kind.removeprefix("*")
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_REPEATED if kind != word else added.LABEL_OPTIONAL
            added.type = _KIND.get(word, added.TYPE_MESSAGE)
            if word not in _KIND:
                added.type_name = f".{_PACKAGE}.{word}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES: Final = _classes()
