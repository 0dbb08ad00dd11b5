"""The bytes between plugin and agent: any bytes are a request, or refused, in time."""

import contextlib
import os
import resource
import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.agent.cni_wire import (
    MAGIC,
    DescriptorLostError,
    WireError,
    format_response,
    opened,
    read_request,
)
from overlay.kernel.pod_namespace import PodNamespace

Read = tuple[dict[str, str], bytes, PodNamespace | None]
_HEADER = struct.Struct("<4sIII")


def request(
    variables: bytes = b"", text: bytes = b"", flags: int = 0, magic: bytes = MAGIC
) -> bytes:
    return _HEADER.pack(magic, flags, len(variables), len(text)) + variables + text


def read(*parts: bytes, descriptors: tuple[int, ...] = ()) -> Read | WireError:
    """Return what the agent reads of a client that sends ``parts`` and closes."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        far.settimeout(5)

        def send() -> None:
            rights = struct.pack(f"{len(descriptors)}i", *descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
            with contextlib.suppress(OSError):  # refused before all of it was read
                for number, part in enumerate(parts):
                    near.sendmsg([part], ancillary if number == 0 else [])
                near.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            with opened(far) as opening:
                found: Read | WireError = read_request(far, opening)
        except WireError as exc:
            found = exc
        far.shutdown(socket.SHUT_RDWR)
        sender.join(5)
        assert not sender.is_alive()
        return found


values = st.binary(max_size=40).map(lambda b: b.replace(b"\0", b""))
names = st.binary(min_size=1, max_size=10).map(lambda b: b.replace(b"\0", b"x").replace(b"=", b"y"))


@given(st.dictionaries(names, values, max_size=5), st.binary(max_size=200_000))
@settings(max_examples=50, deadline=None)
def test_what_is_sent_is_what_is_read(variables: dict[bytes, bytes], text: bytes) -> None:
    block = b"".join(name + b"=" + value + b"\0" for name, value in variables.items())
    found = read(request(block, text))
    assert not isinstance(found, WireError)
    expected = {
        n.decode(errors="backslashreplace"): v.decode(errors="backslashreplace")
        for n, v in variables.items()
    }
    assert found == (expected, text, None)


@given(st.binary(max_size=300), st.booleans(), st.integers(0, 300))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes, has_magic: bool, cut: int) -> None:
    whole = MAGIC + data if has_magic else data
    parts = [part for part in (whole[:cut], whole[cut:]) if part] or [b""]
    found = read(*parts)
    assert isinstance(found, WireError | tuple)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_lengths_beyond_the_limits_are_refused_unread(variables: int, text: int) -> None:
    found = read(_HEADER.pack(MAGIC, 0, variables, text) + b"short")
    is_whole = variables + text <= len(b"short")
    assert isinstance(found, WireError) != is_whole
    if variables > 65536 or text > 1 << 20:
        assert "too long" in str(found)


@pytest.mark.parametrize(
    "data", [b"", b"O", b"OVL1", request(magic=b"OVL2"), request(b"A=1\0", b"{}")[:-1]]
)
def test_what_is_no_whole_request_is_refused(data: bytes) -> None:
    assert isinstance(read(data), WireError)


def test_request_in_many_pieces_is_one() -> None:
    data = request(b"CNI_COMMAND=ADD\0", b'{"a": 1}')
    found = read(*(data[i : i + 1] for i in range(len(data))))
    assert found == ({"CNI_COMMAND": "ADD"}, b'{"a": 1}', None)


@pytest.mark.parametrize("count", [0, 1, 2, 30])
@pytest.mark.parametrize("flags", [0, 1, 0xFFFFFFFF])
def test_descriptors_are_closed_again(count: int, flags: int) -> None:
    mine = os.open("/dev/null", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing's own is counted alike
    found = read(request(b"A=1\0", flags=flags), descriptors=(mine,) * count)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - likewise
    os.close(mine)
    assert not isinstance(found, WireError)
    assert (found[2] is not None) == bool(count and flags & 1)


@pytest.mark.parametrize(
    ("flags", "has_rtnl", "has_sysctls"),
    [(1, False, False), (3, True, False), (5, False, True), (7, True, True), (9, False, False)],
)
def test_descriptors_come_in_the_order_of_their_bits(
    flags: int, has_rtnl: bool, has_sysctls: bool
) -> None:
    mine = os.open("/dev/null", os.O_RDONLY)
    found = read(request(b"A=1\0", flags=flags), descriptors=(mine,) * 3)
    os.close(mine)
    assert not isinstance(found, WireError)
    pod = found[2]
    assert pod is not None
    assert (pod.rtnl is not None, pod.sysctls is not None) == (has_rtnl, has_sysctls)
    passed = [fd for fd in (pod.descriptor, pod.rtnl, pod.sysctls) if fd is not None]
    assert passed == sorted(set(passed))


@given(st.integers(0, 1), st.binary())
def test_response_is_magic_status_length_output(status: int, output: bytes) -> None:
    data = format_response(status, output)
    assert struct.unpack_from("<4sII", data) == (MAGIC, status, len(output))
    assert data[12:] == output


def test_descriptor_that_there_is_no_room_for_is_told() -> None:
    """The kernel then hands over none, and says so (MSG_CTRUNC)."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with near, far, open(os.devnull, "rb") as file:  # noqa: PTH123 - its descriptor alone counts
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file.fileno()))]
        near.sendmsg([request(b"A=b\0", b"{}", flags=1)], rights)
        near.shutdown(socket.SHUT_WR)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with opened(far) as opening, pytest.raises(DescriptorLostError, match="too many files"):
                read_request(far, opening)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
