"""What the kernel answers to a request: an acknowledgement, or why it was not carried out.

Sources: linux/netlink.h (nlmsgerr, nlmsgerr_attrs).
"""

import os
import struct
from typing import Final

from overlay.kernel.wire import attribute_of, decoder

_ERROR: Final = struct.Struct("=i")
_NLMSGERR_ATTR_MSG: Final = 1
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200


class Refusal:
    """The kernel's answer to a request that it did not carry out."""

    __slots__ = ("errno", "index", "text")

    def __init__(self, index: int, number: int, text: str) -> None:
        self.index = index
        self.errno = number
        self.text = text or os.strerror(number)


def refusal(flags: int, data: bytes, start: int, end: int, index: int = 0) -> Refusal | None:
    """Return why the request at ``index`` was refused; None where it was carried out."""
    number = error_number(data, start, end)
    return Refusal(index, number, extended_text(flags, data, start, end)) if number else None


@decoder
def error_number(data: bytes, start: int, end: int) -> int:
    """Return the error number of an acknowledgement, 0 for none (struct nlmsgerr)."""
    number = -int(_ERROR.unpack_from(data[start:end])[0])
    os.strerror(number)  # what is no int to C is no error number either
    return number


@decoder
def extended_text(flags: int, data: bytes, start: int, end: int) -> str:
    """Return the kernel's own words for an error (NETLINK_EXT_ACK), or an empty text."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    offset = start + 4 + 16  # the error and the header of the request
    if not flags & _NLM_F_CAPPED:
        (length,) = struct.unpack_from("=I", data, start + 4)
        offset = start + 4 + length + (-length % 4)
    text = attribute_of(_NLMSGERR_ATTR_MSG, data, offset, end) or b""
    return text.rstrip(b"\0").decode(errors="replace")
