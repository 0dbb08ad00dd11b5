"""What a runtime asks of the plugin, checked; and the errors it is answered with.

Source: CNI specification 1.1.0 (containernetworking/cni, SPEC.md). Nothing
here touches the kernel or remembers anything.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

from overlay.kernel.pod_faults import Expected
from overlay.kernel.pods import link_name
from overlay.model.address import IPAddress, MacAddress, parse_mac
from overlay.model.attachment import AttachmentKey
from overlay.model.document import parse_json
from overlay.model.errors import OverlayError, shown

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST: Final = VERSIONS[-1]
PLUGIN: Final = "overlay"  # the configuration's "type"

INCOMPATIBLE, UNSUPPORTED, UNKNOWN_CONTAINER, BAD_VARIABLE = 1, 2, 3, 4
IO_FAILURE, UNDECODABLE, BAD_CONFIG, TRY_LATER = 5, 6, 7, 11
UNAVAILABLE, LIMITED = 50, 51
EXISTS, NO_ADDRESS, WIRING, CHECK_FAILED = 100, 101, 102, 103  # ours, as the specification allows
FAULT: Final = 999  # of the agent itself: libcni's ErrInternal

_COMMANDS: Final = ("ADD", "DEL", "CHECK", "GC", "STATUS")
_SINCE: Final = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_NEEDS: Final = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_INTERFACE: Final = re.compile(
    r"[^/:%\s\x00\ud800-\udfff]{1,15}\Z"
)  # the kernel counts up where it reads %d
_IFNAMSIZ: Final = 15  # usable bytes of an interface name
_LONGEST_NAME: Final = 255  # bytes: it becomes part of a file's name
_DEEPEST: Final = 128  # levels, as the plugin allows them (docs/cni-protocol.md)


class CniError(OverlayError):
    """Answered in CNI's error form: ``code``, what is wrong, and ``details`` on the way out."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        self.code = code
        self.details = details
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class CniRequest:
    """One call of the plugin. ``netns`` is CNI_NETNS to the letter, empty where absent."""

    command: str
    version: str
    config: Mapping[str, Any]
    key: AttachmentKey
    netns: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ipam(self) -> bool:
        """Return whether another plugin asks for addresses alone."""
        ipam = self.config.get("ipam")
        return (
            self.config.get("type") != PLUGIN
            and isinstance(ipam, dict)
            and ipam.get("type") == PLUGIN
        )


def parse_request(variables: Mapping[str, str], text: bytes) -> CniRequest:
    """Return the request in a plugin's variables and input. Raises CniError."""
    values = {name: value for name, value in variables.items() if value}  # empty means absent
    command = values.get("CNI_COMMAND", "")
    if command not in _COMMANDS:
        raise CniError(
            BAD_VARIABLE, f"CNI_COMMAND {shown(command)} is unknown", f"it is one of {_COMMANDS}"
        )
    config = _parse_config(text)
    version = _parse_version(config, command)
    for name in _NEEDS.get(command, ()):
        if name not in values:
            raise CniError(BAD_VARIABLE, f"{name} is missing", f"{command} needs it")
    network = config.get("name")
    if not isinstance(network, str) or not _NAME.match(network) or len(network) > _LONGEST_NAME:
        raise CniError(BAD_CONFIG, f'"name" {shown(network)} is not the name of a network')
    container = values.get("CNI_CONTAINERID", "")
    if container and (not _NAME.match(container) or len(container) > _LONGEST_NAME):
        raise CniError(BAD_VARIABLE, f"CNI_CONTAINERID {shown(container)} is not a container id")
    interface = values.get("CNI_IFNAME", "")
    if interface and not _is_interface(interface):
        raise CniError(BAD_VARIABLE, f"CNI_IFNAME {shown(interface)} is not an interface name")
    return CniRequest(
        command=command,
        version=version,
        config=config,
        key=AttachmentKey(network, container, interface),
        netns=values.get("CNI_NETNS", ""),
        arguments=_parse_arguments(values.get("CNI_ARGS", "")),
    )


def version_for_errors(text: bytes) -> str:
    """Return the version to answer an error in, whatever the input is."""
    try:
        version = parse_json(text, _DEEPEST).get("cniVersion")
    except (ValueError, AttributeError):
        return LATEST
    return version if isinstance(version, str) and version in VERSIONS else LATEST


def expected_by(request: CniRequest, *, is_bridged: bool = False) -> Expected:
    """Return what CHECK must find: what the kept result says of the interface.

    Not our own records: others of the chain, and Multus, edit the result
    that they then keep. Raises CniError.
    """
    previous = previous_result(request.config)
    if not previous:
        raise CniError(BAD_CONFIG, '"prevResult" is missing', "CHECK judges by it")
    try:
        interfaces = previous.get("interfaces") or []
        places = [
            i
            for i, item in enumerate(interfaces)
            if item["name"] == request.key.interface and item.get("sandbox")
        ]
        if not places:
            raise CniError(
                BAD_CONFIG, f'"prevResult" has no interface {request.key.interface} in a sandbox'
            )
        return Expected(
            interface=request.key.interface,
            host_interface=link_name(request.key),
            mac=str(interfaces[places[0]].get("mac") or "").lower(),
            addresses=tuple(
                ip_interface(ip["address"]).ip
                for ip in previous.get("ips") or []
                if ip.get("interface", places[0]) == places[0]
            ),
            routes=tuple(
                (ip_network(r["dst"]), ip_address(r["gw"]) if r.get("gw") else None)
                for r in previous.get("routes") or []
            ),
            is_bridged=is_bridged,
        )
    except (TypeError, ValueError, LookupError, AttributeError) as exc:
        raise CniError(BAD_CONFIG, f'"prevResult" cannot be read: {exc!r}') from exc


def wanted_addresses(request: CniRequest) -> tuple[IPAddress, ...]:
    """Return the addresses that the runtime asks for.

    From ``runtimeConfig.ips``, else ``args.cni.ips``, else IP= of CNI_ARGS.
    Raises CniError.
    """
    runtime = _object(request.config, "runtimeConfig")
    args = _object(_object(request.config, "args"), "cni")
    texts: Any = ignoring_case(runtime, "ips")
    if texts is None:
        texts = args.get("ips")
    if texts is None:
        texts = [t for t in request.arguments.get("IP", "").split(",") if t]
    if not isinstance(texts, list):
        raise CniError(BAD_CONFIG, f'"ips" {shown(texts)} is not a list of addresses')
    found: list[IPAddress] = []
    for text in texts:
        try:
            if not isinstance(text, str) or "%" in text:
                raise CniError(BAD_CONFIG, f'"ips": {shown(text)} is not an address')
            address = ip_interface(text).ip if "/" in text else ip_address(text)
        except ValueError as exc:
            raise CniError(BAD_CONFIG, f'"ips": {exc}') from exc
        mapped = address.ipv4_mapped if address.version == 6 else None
        if mapped is not None:
            raise CniError(
                BAD_CONFIG, f'"ips": {text} is an IPv4 address in IPv6\'s form', f"write {mapped}"
            )
        if address in found:
            raise CniError(BAD_CONFIG, f'"ips": {address} is there twice')
        found.append(address)
    return tuple(found)


def wanted_mac(request: CniRequest) -> MacAddress | None:
    """Return the MAC address that the runtime asks for, or None. Raises CniError."""
    runtime = _object(request.config, "runtimeConfig")
    args = _object(_object(request.config, "args"), "cni")
    text = ignoring_case(runtime, "mac") or args.get("mac") or request.arguments.get("MAC")
    if not text:  # podman passes an empty one
        return None
    try:
        return parse_mac(str(text))
    except ValueError as exc:
        raise CniError(BAD_CONFIG, f'"mac": {exc}') from exc


def valid_attachments(config: Mapping[str, Any]) -> frozenset[tuple[str, str]] | None:
    """Return the (container, interface) pairs that GC must keep; None where none are told.

    ``cni.dev/valid-attachments``; null is an empty list. Raises CniError.
    """
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if key in config:
            break
    else:
        return None
    listed = config[key] if config[key] is not None else []
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, f'"{key}" is not a list')
    kept = set()
    for item in listed:
        pair = (item.get("containerID"), item.get("ifname")) if isinstance(item, dict) else ()
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CniError(BAD_CONFIG, f'"{key}": {shown(item)} is not an attachment')
        kept.add((str(pair[0]), str(pair[1])))
    return frozenset(kept)


def previous_result(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``prevResult``, empty where there is none. Raises CniError for another shape."""
    previous = config.get("prevResult")
    if previous is None:
        return {}
    if not isinstance(previous, dict):
        raise CniError(BAD_CONFIG, f'"prevResult" {shown(previous)} is not an object')
    for part in ("interfaces", "ips", "routes"):
        items = previous.get(part) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise CniError(BAD_CONFIG, f'"prevResult.{part}" is not a list of objects')
    return previous


def _is_interface(name: str) -> bool:
    return (
        _INTERFACE.match(name) is not None
        and name not in {".", ".."}
        and len(name.encode()) <= _IFNAMSIZ
    )


def _parse_config(text: bytes) -> dict[str, Any]:
    try:
        document = parse_json(text, _DEEPEST)
    except ValueError as exc:
        raise CniError(UNDECODABLE, f"the network configuration is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise CniError(UNDECODABLE, "the network configuration is not a JSON object")
    return document


def _parse_version(config: Mapping[str, Any], command: str) -> str:
    version = config.get("cniVersion", "0.1.0")  # absent means the first one
    if version not in VERSIONS:
        raise CniError(
            INCOMPATIBLE, f'"cniVersion" {shown(version)} is not supported', f"use {VERSIONS}"
        )
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(INCOMPATIBLE, f'{command} is there from "cniVersion" {since} on')
    return str(version)


def _parse_arguments(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(";"))
    return {name: value for name, equals, value in pairs if equals}


def _object(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def ignoring_case(document: Mapping[str, Any], key: str) -> Any:
    """Return a value of ``runtimeConfig``: runtimes differ in the case of its keys."""
    return next((v for k, v in document.items() if k.lower() == key), None)
