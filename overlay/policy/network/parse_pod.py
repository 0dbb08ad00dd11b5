"""Pods and namespaces of the Kubernetes API, as far as policies look at them.

Their specifications are the API server's and have hundreds of fields: what is
not looked at is not checked, strict or not.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

from overlay.model.address import IPAddress
from overlay.model.netpol import NAME_LABEL, NamedPort, Namespace, Pod, Protocol
from overlay.policy.network.fields import Field
from overlay.policy.network.selectors import parse_labels
from overlay.policy.network.subject import DEFAULT_NAMESPACE, metadata, object_name, root
from overlay.policy.network.syntax import dns_label, port_name, port_number

_FINISHED: Final = ("Succeeded", "Failed")


def parse_namespace(document: Mapping[str, Any], *, strict: bool = True) -> Namespace:
    """Return a namespace, its name among its labels. Raises PolicyFormatError."""
    meta = metadata(root(document, "Namespace", "v1", strict=strict))
    name = dns_label(meta.need("name"))
    return Namespace(name, {**parse_labels(meta.get("labels")), NAME_LABEL: name})


def parse_pod(
    document: Mapping[str, Any], *, strict: bool = True, namespace: str = DEFAULT_NAMESPACE
) -> Pod:
    """Return a pod, in ``namespace`` where it names none. Raises PolicyFormatError."""
    top = root(document, "Pod", "v1", strict=strict)
    space, name = object_name(top, namespace)
    spec, status = _mapping(top.get("spec")), _mapping(top.get("status"))
    node = spec.get("nodeName") if spec is not None else None
    on_host = spec.get("hostNetwork") if spec is not None else None
    if on_host is not None and not isinstance(on_host.value, bool):
        raise on_host.error("must be true or false")
    phase = status.get("phase") if status is not None else None
    return Pod(
        space,
        name,
        _addresses(status) if status is not None else frozenset(),
        parse_labels(metadata(top).get("labels")),
        node.text() if node is not None else "",
        _named_ports(spec) if spec is not None else (),
        is_on_host=on_host is not None and on_host.value,
        is_finished=phase is not None and phase.value in _FINISHED,
    )


def _mapping(field: Field | None) -> Field | None:
    if field is not None:
        field.mapping()
    return field


def _addresses(status: Field) -> frozenset[IPAddress]:
    fields = [field for field in [status.get("podIP")] if field is not None and field.value != ""]
    if (listed := status.get("podIPs")) is not None:
        entries = [_mapping(each) for each in listed.items()]
        fields += [ip for each in entries if each is not None and (ip := each.get("ip"))]
    return frozenset(_address(field) for field in fields)


def _address(field: Field) -> IPAddress:
    try:
        address = ip_address(field.text())
    except ValueError as exc:
        raise field.error("must be an IP address") from exc
    if "%" in field.text():
        raise field.error("must be an address without an interface")
    return address


def _named_ports(spec: Field) -> tuple[NamedPort, ...]:
    """Return the ports with names, of containers and of sidecars, which are init containers."""
    containers = []
    for key in ("containers", "initContainers"):
        listed = spec.get(key)
        for field in listed.items() if listed is not None else []:
            container = _mapping(field)
            if container is None:
                continue
            restart = container.get("restartPolicy")
            if key == "containers" or (restart is not None and restart.value == "Always"):
                containers.append(container)
    ports: list[NamedPort] = []
    for container in containers:
        entries = container.get("ports")
        for entry in entries.items() if entries is not None else []:
            port = _mapping(entry)
            name = port.get("name") if port is not None else None
            if port is None or name is None or name.value == "":
                continue
            spelled = port.get("protocol")
            protocol = spelled.one_of("TCP", "UDP", "SCTP") if spelled is not None else "TCP"
            number = port_number(port.need("containerPort"))
            ports.append(NamedPort(port_name(name), number, Protocol[protocol]))
    return tuple(ports)
