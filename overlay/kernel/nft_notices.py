"""Transactions of nftables as the kernel tells of them: who made one, and whether it touched ours.

Each object that a transaction changes is told first, with its table's name as
the first attribute, and the new generation last (nf_tables_commit in
net/netfilter/nf_tables_api.c). Others may change 100,000 elements at once, so
that what does not hold a name of ours is not taken apart.
"""

import logging
import struct
from typing import Final

from overlay.kernel.nft_generation import parse_generations
from overlay.kernel.notices import FORWARD_TABLES, OVERFLOW, Notice, RulesetChange, maker
from overlay.kernel.wire import MessageError, attribute, decoder, split
from overlay.policy.network.table import POLICY_TABLE
from overlay.policy.ports import PORT_TABLE
from overlay.policy.ruleset import TABLE

log = logging.getLogger(__name__)

# linux/netfilter/nf_tables.h: NFTA_TABLE_NAME, NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_TABLE
# and so on are all 1.
_TABLE_NAME: Final = 1
_NEWGEN: Final = (10 << 8) | 15
_TYPE: Final = struct.Struct("=4xH")  # of struct nlmsghdr
_FAMILY: Final = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}  # linux/netfilter.h, NFPROTO_*
# What an agent has a part in: its tables, and iptables' with the chain that lets pods through.
_TABLES: Final = (TABLE, POLICY_TABLE, PORT_TABLE, *FORWARD_TABLES)
_GENERIC: Final = 4  # bytes of struct nfgenmsg; the family is the first


def _pattern(table: str) -> tuple[int, bytes]:
    family, _, name = table.partition(" ")
    return _FAMILY[family], attribute(_TABLE_NAME, name.encode() + b"\0")


class RulesetNotices:
    """Reads datagrams in their order; one thread."""

    def __init__(self, tables: tuple[str, ...] = _TABLES) -> None:
        self._patterns = {table: _pattern(table) for table in tables}
        self._touched: set[str] = set()  # by the transaction whose generation is not told yet

    def read(self, data: bytes) -> list[Notice]:
        """Return the transactions whose end the datagram tells, OVERFLOW where it is unreadable."""
        try:
            if len(data) >= _TYPE.size and _TYPE.unpack_from(data)[0] == _NEWGEN:
                touched, self._touched = frozenset(self._touched), set()
                return [
                    RulesetChange(each.number, maker(each.pid, each.name), touched)
                    for each in parse_generations(data)
                ]
            for table, (family, pattern) in self._patterns.items():
                if table not in self._touched and pattern in data and _is_of(data, family, pattern):
                    self._touched.add(table)
        except MessageError as exc:
            log.warning("%s", exc)
            self.lose()
            return [OVERFLOW]
        return []

    def lose(self) -> None:
        """Forget the transaction that is being told: some of it was lost."""
        self._touched = set()


@decoder
def _is_of(data: bytes, family: int, pattern: bytes) -> bool:
    """Return whether a message is about the family's table whose name ``pattern`` says."""
    return any(
        data[start] == family and data.startswith(pattern, start + _GENERIC)
        for _kind, _flags, _sequence, _data, start, _end in split(data)
    )
