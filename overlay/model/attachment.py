"""One container's interface on the fabric: who asked for it, and what it got."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

from overlay.model.address import IPAddress, MacAddress, parse_mac
from overlay.model.errors import OverlayError, shown

FORMAT: Final = 1  # of the JSON form; a newer one is not read
_MAX_MTU: Final = 65535  # bytes, an IP packet's length field
PTP, BRIDGE = "ptp", "bridge"  # the configuration's "mode"
MODES: Final = (PTP, BRIDGE)


class AttachmentFormatError(OverlayError):
    """A stored attachment cannot be read."""


@dataclass(frozen=True, slots=True)
class AttachmentKey:
    """What tells attachments apart (CNI specification 1.1.0, section 2): all three together."""

    network: str
    container: str
    interface: str

    def __str__(self) -> str:
        return f"{self.interface} of container {self.container} in network {self.network}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """An interface that was attached.

    ``sandbox`` is CNI_NETNS to the letter. ``link`` is the host's end of the
    veth pair, empty where only addresses were asked for (IPAM alone).
    ``arguments`` are those of CNI_ARGS, such as K8S_POD_NAME.
    """

    key: AttachmentKey
    sandbox: str
    addresses: tuple[IPAddress, ...]
    link: str = ""
    mac: MacAddress | None = None
    mtu: int = 0  # bytes
    arguments: Mapping[str, str] = field(default_factory=dict)
    is_complete: bool = False  # False while, or if, it was cut off half way
    mode: str = PTP  # one of ``MODES``
    labels: Mapping[str, str] = field(default_factory=dict)  # for policies, of the configuration
    netns_inode: int = 0  # of what the agent saw at ``sandbox``, for addresses alone; 0: nothing

    @property
    def shown(self) -> str:
        """Return whose interface this is, with its addresses, as an operator would say it."""
        names = (self.arguments.get("K8S_POD_NAMESPACE"), self.arguments.get("K8S_POD_NAME"))
        pod = "/".join(name for name in names if name)
        whose = f"pod {pod} (container {self.key.container})" if pod else str(self.key)
        return f"{whose} {', '.join(map(str, self.addresses))}"

    def to_json(self) -> dict[str, Any]:
        """Return the form that is kept between runs of the agent."""
        return {
            "format": FORMAT,
            "network": self.key.network,
            "container": self.key.container,
            "interface": self.key.interface,
            "sandbox": self.sandbox,
            "addresses": [str(address) for address in self.addresses],
            "link": self.link,
            "mac": self.mac,
            "mtu": self.mtu,
            "arguments": dict(self.arguments),
            **({"labels": dict(self.labels)} if self.labels else {}),
            **({"netns_inode": self.netns_inode} if self.netns_inode else {}),
            "mode": self.mode,
            "complete": self.is_complete,  # last: see overlay.agent.records
        }


def parse_attachment(document: Any) -> Attachment:
    """Return the attachment that ``to_json`` wrote. Raises AttachmentFormatError."""
    if not isinstance(document, dict):
        msg = "attachment cannot be read: not an object"
        raise AttachmentFormatError(msg)
    if document.get("format") != FORMAT:
        msg = f"attachment of format {shown(document.get('format'))}; this version reads {FORMAT}"
        raise AttachmentFormatError(msg)

    def text(name: str) -> str:
        value = document.get(name)
        if not isinstance(value, str):
            raise _unreadable(name, value)
        return value

    # What an older version did not write is left out.
    mac, mtu = document.get("mac"), document.get("mtu", 0)
    arguments = document.get("arguments", {})
    if isinstance(mtu, bool) or not isinstance(mtu, int) or not 0 <= mtu <= _MAX_MTU:
        raise _unreadable("mtu", mtu)
    if not isinstance(arguments, dict) or not all(isinstance(v, str) for v in arguments.values()):
        raise _unreadable("arguments", arguments)
    labels = document.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise _unreadable("labels", labels)
    inode = document.get("netns_inode", 0)
    if isinstance(inode, bool) or not isinstance(inode, int) or inode < 0:
        raise _unreadable("netns_inode", inode)
    mode = document.get("mode", PTP)  # written since there is another
    if mode not in MODES:
        raise _unreadable("mode", mode)
    try:
        mac = parse_mac(mac) if mac is not None else None
    except (ValueError, AttributeError) as exc:
        raise _unreadable("mac", mac) from exc
    return Attachment(
        key=AttachmentKey(text("network"), text("container"), text("interface")),
        sandbox=text("sandbox"),
        addresses=_parse_addresses(document.get("addresses")),
        link=text("link"),
        mac=mac,
        mtu=mtu,
        arguments=arguments,
        is_complete=document.get("complete") is True,
        mode=mode,
        labels=labels,
        netns_inode=inode,
    )


def _parse_addresses(listed: Any) -> tuple[IPAddress, ...]:
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise _unreadable("addresses", listed)
    try:
        return tuple(ip_address(each) for each in listed)
    except ValueError as exc:
        raise _unreadable("addresses", listed) from exc


def _unreadable(name: str, value: Any) -> AttachmentFormatError:
    return AttachmentFormatError(f"attachment cannot be read: {name} {shown(value)}")
