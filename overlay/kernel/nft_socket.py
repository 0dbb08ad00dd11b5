"""A socket to nftables that stays open.

To close one waits for the kernel to be done with whatever any transaction
deleted last: 8 to 12 ms after each deleted rule, element or table, ours or
another's (nft_rcv_nl_event in net/netfilter/nf_tables_api.c; Linux 6.18).
"""

import socket
import weakref
from typing import Final

NETLINK_NETFILTER: Final = 12
_TIMEOUT_S: Final = 5.0


class NftSocket:
    """Opened by the first who needs it, in that thread's network namespace. One thread at a time.

    Who does not read all answers must ``drop`` it: they are none to what is asked next.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def get(self) -> socket.socket:
        """Return the socket. Raises OSError."""
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
            )
            self._socket.settimeout(_TIMEOUT_S)
            weakref.finalize(self, self._socket.close)
        return self._socket

    def drop(self) -> None:
        """Close the socket; the next ``get`` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
