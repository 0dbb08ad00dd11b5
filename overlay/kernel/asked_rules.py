"""Which routing rule leads a packet to a table: ``ip rule``, read as the kernel matches it.

Layout and attributes: linux/fib_rules.h.
"""

import struct
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Final

from overlay.kernel import messages
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import attributes, decoder, head
from overlay.model.address import Family, IPNetwork
from overlay.policy.verdict import Packet
from overlay.trace.facts import RuleFact

_HEADER: Final = struct.Struct("=BBBBBBBBI")  # fib_rule_hdr
_DST, _SRC, _IIF, _PRIORITY, _TABLE, _OIF = 1, 2, 3, 6, 15, 17
# What a packet has beside its addresses (marks, users, ports): not read here.
_OTHERS: Final = frozenset({4, 10, 11, 12, 19, 20, 22, 23, 24})
_ACTIONS: Final = {1: "lookup", 6: "blackhole", 7: "unreachable", 8: "prohibit"}


def deciding_rule(
    rtnl: RtnlSocket, packet: Packet, table: int | None, *, is_local: bool = False
) -> RuleFact | None:
    """Return the first rule that leads ``packet`` to ``table``; for None one that forbids it.

    A rule with conditions that are not read counts where no other one does.
    Raises KernelError.
    """
    perhaps: RuleFact | None = None
    for message in rtnl.dump(messages.RTM_GETRULE, messages.rules_request(packet.family)):
        rule = _rule(packet.family, message)
        is_asked = rule.table == table if rule.action == "lookup" else table is None
        if not rule.action or not is_asked or not _takes(rule, packet, is_local=is_local):
            continue
        if not rule.has_more:
            return rule
        perhaps = perhaps or rule
    return perhaps


def _takes(rule: RuleFact, packet: Packet, *, is_local: bool) -> bool:
    if rule.source is not None and packet.source not in rule.source:
        return False
    if rule.destination is not None and packet.destination not in rule.destination:
        return False
    return not rule.iif or rule.iif == ("lo" if is_local else packet.iif)


@decoder
def _rule(family: Family, message: tuple[bytes, int, int]) -> RuleFact:
    data, start, end = message
    fields = head(_HEADER, data, start, end)
    _family, to_length, from_length, tos, table, _r1, _r2, action, flags = fields
    parts = attributes(data, start + _HEADER.size, end)
    return RuleFact(
        priority=_u32(parts, _PRIORITY),
        action=_ACTIONS.get(action, ""),
        table=_u32(parts, _TABLE) or table,
        source=_network(family, parts, _SRC, from_length),
        destination=_network(family, parts, _DST, to_length),
        iif=_text(parts, _IIF),
        has_more=bool(_OTHERS & parts.keys()) or tos != 0 or bool(_text(parts, _OIF) or flags & 2),
    )


def _network(
    family: Family, parts: Mapping[int, bytes], kind: int, length: int
) -> IPNetwork | None:
    packed = parts.get(kind)
    if packed is None or len(packed) * 8 != family.bits:
        return None
    return ip_network((packed, length))


def _text(parts: Mapping[int, bytes], kind: int) -> str:
    return parts.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _u32(parts: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(parts.get(kind, b""), "little")
