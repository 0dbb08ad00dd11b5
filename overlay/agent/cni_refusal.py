"""What went wrong, as the runtime is told it: a code of CNI's, and words."""

from overlay.agent.attachments import (
    AttachmentExistsError,
    AttachmentGoneError,
    AttachmentUnreadError,
)
from overlay.agent.cni_request import (
    BAD_CONFIG,
    EXISTS,
    FAULT,
    IO_FAILURE,
    NO_ADDRESS,
    TRY_LATER,
    WIRING,
    CniError,
)
from overlay.ipam.pool import (
    AddressOutsideError,
    AddressTakenError,
    PoolExhaustedError,
)
from overlay.kernel.base import KernelError


def refusal_of(exc: Exception) -> CniError:
    """Return the error that is answered; its cause where ``exc`` is a fault of ours."""
    match exc:
        case CniError():
            return exc
        case AttachmentExistsError():
            return CniError(EXISTS, str(exc), "delete it first; the first one is kept")
        case AttachmentUnreadError():
            return CniError(EXISTS, str(exc), "delete it first")
        case AttachmentGoneError():
            return CniError(TRY_LATER, str(exc))
        case PoolExhaustedError():
            return CniError(NO_ADDRESS, str(exc))
        case AddressTakenError() | AddressOutsideError():
            return CniError(BAD_CONFIG, str(exc))
        case KernelError():
            return CniError(WIRING, str(exc))
        case OSError():
            return CniError(IO_FAILURE, f"attachment cannot be written: {exc.strerror}")
    error = CniError(
        FAULT,
        f"a fault of the agent: {type(exc).__name__}: {exc}",
        "what was begun is undone; the agent's log has more, please report it",
    )
    error.__cause__ = exc
    return error
