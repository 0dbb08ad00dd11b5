"""``--pmtu-clamp``: the devices' MTU follows the least path MTU that was found.

The lessee asks for the underlay; with the clamp it is told of one that carries
no more than the worst path does. All else follows from that as for an
interface whose MTU was lowered: the device, ``subnet.env``, new pods.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from overlay.agent.mesh_peers import FLOOR
from overlay.agent.status import Snapshot
from overlay.kernel.underlay import UnderlayFlags
from overlay.mesh.path_mtu import PathMtu
from overlay.model.address import Family
from overlay.model.node import Underlay

log = logging.getLogger(__name__)

Find = Callable[[UnderlayFlags, Iterable[Family]], Underlay]


class Clamp:
    """Stands between who looks for the underlay and who finds it; any thread may call."""

    def __init__(self, find: Find, *, is_on: bool) -> None:
        self._find = find
        self._is_on = is_on
        self._limit: int | None = None  # bytes
        self._known: dict[bytes, int] = {}  # by peer, what it answered last
        self._device_mtu = 0  # the underlay's own, as of the last look
        self.wake: Callable[[], None] = lambda: None

    def find_underlay(self, flags: UnderlayFlags, families: Iterable[Family]) -> Underlay:
        """Return the underlay, with no larger MTU than the paths have."""
        wanted = tuple(families)
        found = self._find(flags, wanted)
        self._device_mtu = found.mtu
        if self._limit is None:
            return found
        # Less than this has no room for pods at all; then the interface's MTU is as good.
        least = max((FLOOR[f] + f.encapsulation_overhead for f in wanted), default=0)
        return replace(found, mtu=min(found.mtu, max(self._limit, least)))

    def ceiling(self, snapshot: Snapshot) -> int:
        """Return the underlay device's own MTU, up to which paths are searched."""
        return self._device_mtu or (snapshot.site.underlay.mtu if snapshot.site else 0)

    def found(self, results: Mapping[bytes, PathMtu], snapshot: Snapshot) -> None:
        """Take over what a search found: of a peer that did not answer what it answered last.

        ``results`` has all peers with a lease; what others once answered is forgotten.
        """
        answers = {tag: result.least or self._known.get(tag) for tag, result in results.items()}
        self._known = {tag: least for tag, least in answers.items() if least is not None}
        known = self._known.values()
        site = snapshot.site
        if not self._is_on or not known or site is None:
            return
        if site.config.backend.options.get("MTU"):
            return  # the config says it; doctor and metrics name what does not fit
        limit = min(known) if min(known) < self._device_mtu else None
        if limit != self._limit:
            before = self._limit or self._device_mtu
            log.warning("paths carry %d bytes instead of %d", limit or self._device_mtu, before)
            self._limit = limit
            self.wake()
