"""What ``overlayd`` is told about network policies."""

from dataclasses import dataclass
from typing import Final

LOG_GROUP: Final = 9470  # as the port of the HTTP server: nobody else's by chance


@dataclass(frozen=True, slots=True)
class PolicyFlags:
    """``log_group`` 0 logs no packets."""

    is_on: bool = True
    keeps_established: bool = False
    log_group: int = LOG_GROUP
    admin_tier: bool = False
