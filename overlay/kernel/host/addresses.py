"""Every address of every link, and where the kernel would send a packet."""

import struct
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_interface
from typing import Final

from overlay.kernel import messages, parse
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import attributes, decoder, head
from overlay.model.address import IPAddress, IPInterface, host_network

_IFADDRMSG: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


@decoder
def list_addresses(rtnl: RtnlSocket) -> Mapping[int, Sequence[IPInterface]]:
    """Return the addresses of each link by the link's index, in the kernel's order."""
    found: dict[int, list[IPInterface]] = {}
    for data, start, end in rtnl.dump(messages.RTM_GETADDR, _IFADDRMSG.pack(0, 0, 0, 0, 0)):
        _family, length, _flags, _scope, index = head(_IFADDRMSG, data, start, end)
        parts = attributes(data, start + _IFADDRMSG.size, end)
        packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
        if packed is not None:
            found.setdefault(index, []).append(ip_interface((ip_address(packed), length)))
    return found


def route_link(rtnl: RtnlSocket, address: IPAddress) -> int:
    """Return the index of the link that packets to ``address`` leave by; 0 where no route leads.

    ``ip route get ADDRESS``
    """
    answer = rtnl.ask(messages.RTM_GETROUTE, messages.route_query(host_network(address)))
    return 0 if answer is None else parse.route_maker(answer)[1]
