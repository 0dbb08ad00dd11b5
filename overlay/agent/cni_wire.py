"""The bytes between plugin and agent: docs/cni-protocol.md, version 1."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from overlay.kernel.pod_namespace import PodNamespace
from overlay.model.errors import OverlayError

MAGIC: Final = b"OVL1"
_REQUEST: Final = struct.Struct("<4sIII")  # magic, flags, bytes of variables, bytes of input
_RESPONSE: Final = struct.Struct("<4sII")  # magic, exit status, bytes of output
# Each bit stands for a descriptor; they come in this order, the namespace's own first.
_HAS_NETNS, _HAS_RTNL, _HAS_SYSCTLS = 1, 2, 4
_ANY: Final = _HAS_NETNS | _HAS_RTNL | _HAS_SYSCTLS
_LONGEST_VARIABLES: Final = 64 * 1024  # bytes
_LONGEST_INPUT: Final = 1 << 20  # bytes
LONGEST_ANSWER: Final = 1 << 20  # bytes
_READ_S: Final = 10.0


class WireError(OverlayError):
    """What came is not a request."""


class DescriptorLostError(OverlayError):
    """The namespace's descriptor did not come through: we have no room for one."""


@dataclass(slots=True)
class Opening:
    """The first bytes of a client, and the descriptors that came with them."""

    data: bytes = b""
    descriptors: list[int] = field(default_factory=list)
    is_cut: bool = False  # the kernel could not hand over all descriptors


@contextlib.contextmanager
def opened(client: socket.socket) -> Iterator[Opening]:
    """Receive a client's first bytes; its descriptors are closed at the end."""
    opening = Opening()
    try:
        data, ancillary, flags, _address = client.recvmsg(65536, socket.CMSG_SPACE(16))
        opening.data, opening.is_cut = data, bool(flags & socket.MSG_CTRUNC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(payload) - len(payload) % 4
                opening.descriptors += struct.unpack(f"={whole // 4}i", payload[:whole])
        yield opening
    finally:
        for descriptor in opening.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def read_request(
    client: socket.socket, opening: Opening
) -> tuple[dict[str, str], bytes, PodNamespace | None]:
    """Return variables, input and the pod's namespace, if any.

    Raises WireError, DescriptorLostError, OSError.
    """
    deadline = time.monotonic() + _READ_S
    data = bytearray(opening.data)
    _fill(client, data, _REQUEST.size, deadline)
    magic, flags, variables, text = _REQUEST.unpack_from(data)
    if magic != MAGIC or variables > _LONGEST_VARIABLES or text > _LONGEST_INPUT:
        msg = "not a request of this protocol, or one that is too long"
        raise WireError(msg)
    end = _REQUEST.size + variables + text
    _fill(client, data, end, deadline)
    block = bytes(data[_REQUEST.size : _REQUEST.size + variables])
    pairs = (item.partition(b"=") for item in block.split(b"\0") if item)
    if opening.is_cut and len(opening.descriptors) < (flags & _ANY).bit_count():
        msg = "the descriptor of the namespace is lost: too many files are open in the agent"
        raise DescriptorLostError(msg)
    return (
        {_text(name): _text(value) for name, _, value in pairs},
        bytes(data[_REQUEST.size + variables : end]),
        _namespace(flags, opening.descriptors),
    )


def _namespace(flags: int, descriptors: Iterable[int]) -> PodNamespace | None:
    coming = iter(descriptors)
    netns, rtnl, sysctls = (
        next(coming, None) if flags & bit else None for bit in (_HAS_NETNS, _HAS_RTNL, _HAS_SYSCTLS)
    )
    return PodNamespace(netns, rtnl, sysctls) if netns is not None else None


def format_response(status: int, output: bytes) -> bytes:
    """Return the answer's bytes."""
    return _RESPONSE.pack(MAGIC, status, len(output)) + output


def _fill(client: socket.socket, data: bytearray, length: int, deadline: float) -> None:
    while len(data) < length:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        part = client.recv(65536)
        if not part:
            msg = f"the request ends after {len(data)} of {length} bytes"
            raise WireError(msg)
        data += part


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
