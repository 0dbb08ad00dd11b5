"""What gRPC says of a call, in the words of the store's contract."""

import grpc
import pytest

from overlay.store.base import StoreUnavailableError
from overlay.store.etcd_errors import StaleConnectionError, translate
from tests.sim.etcd import RefusedError


@pytest.mark.parametrize(
    ("code", "said", "is_silent"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", True),
        (grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection timed out", True),
        (grpc.StatusCode.UNAVAILABLE, "ping timeout", True),
        (grpc.StatusCode.UNAVAILABLE, "keepalive watchdog timeout", True),
        (grpc.StatusCode.UNAVAILABLE, "connect: Connection refused (111)", False),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", False),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out", False),
        (grpc.StatusCode.UNAVAILABLE, "", False),
    ],
)
def test_connection_that_went_silent_is_told_from_a_member_that_is_not_there(
    code: grpc.StatusCode, said: str, is_silent: bool
) -> None:
    error = translate(RefusedError(code, said), "http://192.0.2.1:2379")

    assert isinstance(error, StoreUnavailableError)
    assert isinstance(error, StaleConnectionError) == is_silent
