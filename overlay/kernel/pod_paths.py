"""A pod with several interfaces: what it sends from an address leaves by that address's own.

For each address A of an interface::

    ip -n POD rule add from A lookup T priority 20320
    ip -n POD route add default via GATEWAY dev IFACE onlink table T proto 80
    ip -n POD route add SUBNET dev IFACE table T proto 80      # in mode bridge

Without that an answer would leave by the interface that has the default route,
and the node would drop it there: a source address must be routed to the link
that it comes from. A pod with one interface has none of it. T is the
interface's own table, and empty when it goes: a rule that outlives it is
passed over.
"""

import struct
from typing import Final

from overlay.kernel import messages
from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request
from overlay.kernel.wire import attribute
from overlay.model.address import Family, IPAddress, IPNetwork, family_of

FIRST_TABLE: Final = 20320  # the interface's index in the pod is added
PRIORITY: Final = 20320  # before the main table's 32766

_RTM_NEWRULE: Final = 32
_HEADER: Final = struct.Struct("=BBBBBBBBI")  # rtmsg and fib_rule_hdr alike
_U32: Final = struct.Struct("=I")
_FRA_SRC, _FRA_PRIORITY, _FRA_TABLE = 2, 6, 15  # linux/fib_rules.h
_FR_ACT_TO_TBL: Final = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_RTN_UNICAST, _RTNH_F_ONLINK, _SCOPE_LINK = 1, 4, 253


def path_of(
    index: int,
    address: IPAddress,
    gateway: IPAddress,
    protocol: int,
    on_link: IPNetwork | None = None,
) -> list[Request]:
    """Return what leads ``address`` out by the interface ``index``: its routes, then its rule.

    What is ``on_link`` there is reached without the gateway.
    The rule is refused with EEXIST where it is there already.
    """
    family = messages.AF[family_of(address)]
    table = attribute(_RTA_TABLE, _U32.pack(FIRST_TABLE + index))
    route = (
        _HEADER.pack(family, 0, 0, 0, 0, protocol, 0, _RTN_UNICAST, _RTNH_F_ONLINK)
        + table
        + attribute(_RTA_OIF, _U32.pack(index))
        + attribute(_RTA_GATEWAY, gateway.packed)
    )
    rule = (
        _HEADER.pack(family, 0, address.max_prefixlen, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
        + attribute(_FRA_SRC, address.packed)
        + attribute(_FRA_PRIORITY, _U32.pack(PRIORITY))
        + attribute(_FRA_TABLE, _U32.pack(FIRST_TABLE + index))
    )
    requests = [Request(messages.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route)]
    if on_link is not None:
        scope = _SCOPE_LINK if family == messages.AF[Family.IPV4] else 0
        near = (
            _HEADER.pack(family, on_link.prefixlen, 0, 0, 0, protocol, scope, _RTN_UNICAST, 0)
            + table
            + attribute(_RTA_DST, on_link.network_address.packed)
            + attribute(_RTA_OIF, _U32.pack(index))
        )
        requests.append(Request(messages.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, near))
    requests.append(Request(_RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule))
    return requests
