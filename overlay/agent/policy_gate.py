"""What attaching a pod asks of its policies."""

from typing import Protocol

from overlay.model.attachment import Attachment


class PolicyGate(Protocol):
    """For any thread."""

    def admit(self, attachment: Attachment) -> None:
        """Return once the kernel judges the packets of a pod that is about to start.

        Raises KernelError where that cannot be had: the pod must not start.
        """

    def wake(self) -> None:
        """Look at the node's pods again: one went."""
