"""The errors of a lab that somebody acts on."""

from overlay.model.errors import OverlayError


class LabError(OverlayError):
    """The lab could not do what it was asked."""


class LabUsageError(LabError):
    """The lab cannot be run like this: not root, a tool missing, an impossible size."""

    exit_code = 2


class LabExistsError(LabError):
    """A lab of this name is up, or was left half up."""


class NoLabError(LabError):
    """No lab of this name is up."""
