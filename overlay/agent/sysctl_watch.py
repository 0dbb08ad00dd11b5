"""Looks at the sysctls of forwarding again and again: of most the kernel tells nothing.

procfs has no inotify, and RTM_NEWNETCONF is about forwarding alone. Who puts
them right is the reconciler.
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
        self._settings: Sequence[sysctl.Sysctl] = ()  # that it needs

    def run(self, stop: StopSignal) -> None:
        """Work until ``stop`` is set."""
        while not stop.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """Look once."""
        site = self._status.get().site
        if site is None:
            return
        if site is not self._site:
            self._site, self._settings = site, settings(site)
        found = self._differing(self._settings)
        if found - self._told:
            self._tell([SYSCTL])
        self._told = found
