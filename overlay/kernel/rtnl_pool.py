"""Sockets that are used again: to make one and close it takes as long as some requests."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from overlay.kernel.rtnl import RtnlSocket

_SPARE: Final = 16  # sockets that are kept


class RtnlPool:
    """Lends sockets to threads of one network namespace, each to one at a time."""

    def __init__(self) -> None:
        self._idle: deque[RtnlSocket] = deque()

    @contextmanager
    def lent(self) -> Iterator[RtnlSocket]:
        """Lend a socket for the block. One whose user failed is not lent again."""
        try:
            rtnl = self._idle.pop()
        except IndexError:
            rtnl = RtnlSocket()
        try:
            yield rtnl
        except BaseException:
            rtnl.close()
            raise
        if len(self._idle) < _SPARE:
            self._idle.append(rtnl)
        else:
            rtnl.close()
