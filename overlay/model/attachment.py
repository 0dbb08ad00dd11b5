"""One container's interface on the fabric: who asked for it, and what it got."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

from overlay.model.address import IPAddress, MacAddress
from overlay.model.errors import OverlayError

FORMAT: Final = 1  # of the JSON form; a newer one is not read


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
            "complete": self.is_complete,
        }


def parse_attachment(document: Any) -> Attachment:
    """Return the attachment that ``to_json`` wrote. Raises AttachmentFormatError."""
    try:
        if document["format"] != FORMAT:
            msg = f"attachment of format {document['format']!r}; this version reads {FORMAT}"
            raise AttachmentFormatError(msg)
        texts = {name: document[name] for name in ("network", "container", "interface", "link")}
        if not all(isinstance(text, str) for text in (*texts.values(), document["sandbox"])):
            msg = "attachment with a name that is no text"
            raise AttachmentFormatError(msg)
        return Attachment(
            key=AttachmentKey(texts["network"], texts["container"], texts["interface"]),
            sandbox=document["sandbox"],
            addresses=tuple(ip_address(text) for text in document["addresses"]),
            link=texts["link"],
            mac=document["mac"],
            mtu=int(document["mtu"]),
            arguments={str(k): str(v) for k, v in document["arguments"].items()},
            is_complete=document["complete"] is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        msg = f"attachment cannot be read: {exc!r}"
        raise AttachmentFormatError(msg) from exc
