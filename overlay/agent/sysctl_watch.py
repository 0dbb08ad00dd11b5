"""Looks again and again at the sysctls of which the kernel tells nothing: IPv6's, of the tunnel.

procfs has no inotify, and RTM_NEWNETCONF, which the kernel's monitor hears, is
about forwarding alone. Who puts them right is the reconciler.
"""

from collections.abc import Callable, Sequence
from typing import Final

from overlay.agent.firewall import settings
from overlay.agent.status import Status
from overlay.kernel import sysctl
from overlay.kernel.notices import SYSCTL, Notice
from overlay.plan.planner import Site
from overlay.store.base import StopSignal

_LOOK_S: Final = 0.8  # less than a second until any drift is repaired
_REST_S: Final = 10.0  # while a network has none of them


class SysctlWatch:
    """``tell`` hears once of each value that is not as wanted, until that changes again."""

    def __init__(
        self,
        status: Status,
        tell: Callable[[Sequence[Notice]], None],
        differing: Callable[[Sequence[sysctl.Sysctl]], frozenset[str]] = sysctl.differing,
    ) -> None:
        self._status, self._tell, self._differing = status, tell, differing
        self._told: frozenset[str] = frozenset()
        self._site: Site | None = None
        self._settings: Sequence[sysctl.Sysctl] = ()  # that it needs, and that are not told

    def run(self, stop: StopSignal) -> None:
        """Work until ``stop`` is set."""
        while not stop.wait(self.pause_s):
            self.look()

    @property
    def pause_s(self) -> float:
        """Return how long to wait before the next look, in seconds."""
        has_none = self._site is not None and not self._settings
        return _REST_S if has_none else _LOOK_S

    def look(self) -> None:
        """Look once."""
        site = self._status.get().site
        if site is None:
            return
        if site is not self._site:
            self._site = site
            self._settings = [each for each in settings(site) if not each.is_told]
        found = self._differing(self._settings)
        if found - self._told:
            self._tell([SYSCTL])
        self._told = found
