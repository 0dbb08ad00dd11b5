"""How long etcd leases have left: one question each, many of them under way at once.

etcd has no request for several. One after another 1,000 took 1.1 s, by 16 threads
0.16 s of processor time here, and with 64 under way on one thread 0.11 s (2026-11).
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import etcd3.etcdrpc as rpc

_UNDER_WAY: Final = 64


def seconds_left(client: Any, lease_ids: Iterable[int]) -> dict[int, int]:
    """Return the seconds that each lease has left, by its id; 0 for one that is over.

    Raises what gRPC raises.
    """
    left: dict[int, int] = {}
    asked: deque[tuple[int, Any]] = deque()

    def take() -> None:
        lease_id, answer = asked.popleft()
        left[lease_id] = max(0, int(answer.result().TTL))  # -1 when it is over

    for lease_id in lease_ids:
        call = client.leasestub.LeaseTimeToLive.future(
            rpc.LeaseTimeToLiveRequest(ID=lease_id),
            client.timeout,
            credentials=client.call_credentials,
            metadata=client.metadata,
        )
        asked.append((lease_id, call))
        if len(asked) >= _UNDER_WAY:
            take()
    while asked:
        take()
    return left
