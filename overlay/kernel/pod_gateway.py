"""The host's end of a pod's link answers as the pod's gateway.

    ip addr add 169.254.1.1/32 dev opodX scope host;  ip addr add fe80::1/64 dev opodX nodad

The pod has an entry for its gateway from the start, and loses it when its MAC
address changes (the reference plugin tuning does that, in a chain): it asks
then. The host has no entry for the pod for the same reason, and asks with its
first packet, which a veth pair answers within microseconds. Scope host, so that
the node never chooses that address as its own.
"""

import struct
from typing import Final

from overlay.kernel import messages
from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_REPLACE, Request, attribute
from overlay.model.address import Family, IPAddress, family_of

_RTM_NEWADDR: Final = 20
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_U32: Final = struct.Struct("=I")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD: Final = 0x02
_SCOPE: Final = {Family.IPV4: 254, Family.IPV6: 253}  # host, link
_LENGTH: Final = {Family.IPV4: 32, Family.IPV6: 64}
_FLAGS: Final = NLM_F_CREATE | NLM_F_REPLACE


def gateway_address(index: int, gateway: IPAddress) -> Request:
    """Return what lets the interface ``index`` answer for the pod's gateway."""
    family = family_of(gateway)
    body = _IFADDRMSG.pack(messages.AF[family], _LENGTH[family], 0, _SCOPE[family], index)
    body += attribute(_IFA_LOCAL, gateway.packed) + attribute(_IFA_ADDRESS, gateway.packed)
    if family is Family.IPV6:
        body += attribute(_IFA_FLAGS, _U32.pack(_IFA_F_NODAD))
    return Request(_RTM_NEWADDR, _FLAGS, body)
