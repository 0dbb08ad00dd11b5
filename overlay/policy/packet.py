"""One packet as rules see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from overlay.model.address import Family, IPAddress, family_of
from overlay.policy.network.midway import CUT_MARK

IP: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_NFPROTO: Final = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}
_NUMBER: Final = {
    "tcp": 6, "udp": 17, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132,
}  # fmt: skip
_PORTED: Final = frozenset({"tcp", "udp"})
# A match on the header of one of these holds for its packets alone: nft adds that.
_TRANSPORTS: Final = frozenset({*_NUMBER, "udplite", "dccp", "esp", "ah", "comp", "igmp"})
_TCP_FLAGS: Final = {"payload": {"protocol": "tcp", "field": "flags"}}
_VNI_AT: Final = ("th", 96, 24)  # base, offset and length in bits: of UDP, then VXLAN


@dataclass(frozen=True, slots=True)
class Packet:
    """What rules look at. A port is None where it is not known, or there is none.

    ``source_device`` is the device that the node's route to the source leads
    to, None where there is no such route; ``vni`` that of a tunnel packet.
    ``destination_type`` is what the node's routes make of the destination:
    ``local`` or ``unicast``, empty where that is not known.
    ``unknown`` names the fields that only stand for something, of ``source``,
    ``destination``, ``iif`` and ``oif``: what a rule asks of them is not known.
    """

    source: IPAddress
    destination: IPAddress
    protocol: str = "icmp"  # tcp | udp | icmp (ICMPv6 with IPv6)
    source_port: int | None = None
    port: int | None = None
    iif: str = ""
    oif: str = ""
    source_device: str | None = None
    vni: int | None = None
    is_answer: bool = False
    destination_type: str = ""
    unknown: frozenset[str] = frozenset()

    @property
    def family(self) -> Family:
        """Return the packet's address family."""
        return family_of(self.destination)

    @property
    def protocol_number(self) -> int:
        """Return the number in the IP header."""
        if self.protocol == "icmp":
            return 1 if self.family is Family.IPV4 else 58
        return _NUMBER[self.protocol]

    def value(self, left: Any) -> tuple[bool, Any]:
        """Return whether it is known what ``left`` of a match is here, and that.

        None, known, is a field that this packet has not: nft itself adds the
        match on family or protocol that makes the rule pass it over. A tuple
        is a concatenation.
        """
        if not isinstance(left, dict) or len(left) != 1:
            return False, None
        ((kind, body),) = left.items()
        if kind == "concat" and isinstance(body, list):
            return self._concatenated(body)
        if kind == "&" and isinstance(body, list):
            return self._flags(body)
        if not isinstance(body, dict):
            return False, None
        if kind == "meta":
            return self._meta(body.get("key"))
        if kind == "payload":
            return self._payload(body)
        if kind == "ct" and body.get("key") == "state":
            return True, "established" if self.is_answer else "new"
        if kind == "fib" and body.get("result") == "oif" and body.get("flags") == ["saddr", "iif"]:
            return True, self.source_device == self.iif
        if kind == "exthdr":  # no packet that is asked about has IPv6 extension headers
            return True, None
        if kind == "fib" and body.get("result") == "type" and body.get("flags") == ["saddr"]:
            return not self.iif, "local"  # what comes in nowhere is the node's own
        if kind == "fib" and body.get("result") == "type" and body.get("flags") == ["daddr"]:
            return bool(self.destination_type), self.destination_type
        return False, None

    def _concatenated(self, parts: list[Any]) -> tuple[bool, Any]:
        values = [self.value(part) for part in parts]
        if any(known and value is None for known, value in values):
            return True, None
        return all(known for known, _ in values), tuple(value for _, value in values)

    def _flags(self, parts: list[Any]) -> tuple[bool, Any]:
        """Return what a mask leaves of the TCP flags: SYN alone is set in a first packet."""
        if parts == [{"ct": {"key": "mark"}}, CUT_MARK]:
            return True, 0  # a new connection is one that was not cut
        if parts[:1] != [_TCP_FLAGS]:
            return False, None
        if self.protocol != "tcp":
            return True, None
        is_asked = len(parts) == 2 and isinstance(parts[1], list) and "syn" in parts[1]
        return is_asked and not self.is_answer, "syn"

    def _meta(self, key: Any) -> tuple[bool, Any]:
        field = {"iifname": "iif", "oifname": "oif"}.get(key, key) if isinstance(key, str) else ""
        if field in {"iif", "oif"}:
            return field not in self.unknown, self.iif if field == "iif" else self.oif
        known: Mapping[str, Any] = {
            "l4proto": self._spelled,
            "nfproto": _NFPROTO[self.family],
            "protocol": IP[self.family],
        }
        return field in known, known.get(field)

    @property
    def _spelled(self) -> str:
        return "ipv6-icmp" if self.protocol_number == 58 else self.protocol

    def _payload(self, body: Mapping[str, Any]) -> tuple[bool, Any]:
        protocol, name = body.get("protocol"), body.get("field")
        if protocol in {"ip", "ip6"}:
            return self._address(str(protocol), name)
        if protocol == "ether" and name == "type":
            return True, IP[self.family]
        if protocol in _PORTED or protocol == "th":
            if protocol not in {"th", self.protocol}:
                return True, None
            ports = {"sport": self.source_port, "dport": self.port}
            return ports.get(str(name)) is not None, ports.get(str(name))
        if protocol in _TRANSPORTS:
            own = {"icmp"} if self.protocol_number == 1 else {"icmpv6", "ipv6-icmp"}
            if self.protocol != "icmp" or protocol not in own:
                return True, None
            return name == "type", "echo-reply" if self.is_answer else "echo-request"
        if (body.get("base"), body.get("offset"), body.get("len")) == _VNI_AT:
            return self.vni is not None, self.vni
        return False, None

    def _address(self, protocol: str, name: Any) -> tuple[bool, Any]:
        if protocol != IP[self.family]:
            return True, None
        if name == "saddr":
            return "source" not in self.unknown, self.source
        if name == "daddr":
            return "destination" not in self.unknown, self.destination
        if name in {"protocol", "nexthdr"}:
            return True, self._spelled
        return False, None
