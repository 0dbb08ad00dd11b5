"""What the node's lease should say: by the network config, by the underlay, and who says so."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay import __version__
from overlay.agent.flags import Flags
from overlay.agent.host import Host
from overlay.model.address import family_of
from overlay.model.errors import ConfigError
from overlay.model.lease import LeaseAttributes, LeaseView, Owner
from overlay.model.network import NetworkConfig
from overlay.model.node import Underlay
from overlay.plan.backend import Backend, UnderlayError

Check: TypeAlias = Callable[[Backend, Underlay], None]

_NEVER_S: Final = float("inf")


@dataclass(frozen=True, slots=True)
class LeaseContent:
    """A config, what carries it, and the lease that says so to others."""

    config: NetworkConfig
    backend: Backend
    underlay: Underlay
    attributes: LeaseAttributes


class ContentSource:
    """Looks at the config of each view and, now and then, at the underlay.

    Belongs to the lessee's thread. ``content`` is what was found last; a look
    that fails leaves it. ``look_at`` is when the next look is due, on ``clock``;
    the first config makes the first one.
    """

    def __init__(self, flags: Flags, host: Host, check: Check, clock: Callable[[], float]) -> None:
        self._flags = flags
        self._host = host
        self._check = check
        self._clock = clock
        self.content: LeaseContent | None = None
        self.look_at = _NEVER_S
        self._config: NetworkConfig | None = None  # the last one that was looked at
        self._is_config_lost = False  # a view since then had none to read
        self._is_demanded = False
        self._claimed_at = ""

    def demand(self) -> None:
        """Make the next look a thorough one; for any thread."""
        self._is_demanded = True

    def postpone(self) -> None:
        """Note that there is nothing to look at yet."""
        self.look_at = self._clock() + self._flags.audit_interval_s

    def see(self, view: LeaseView) -> None:
        """Note whether a view has a config that can be read."""
        self._is_config_lost |= view.config_error is not None

    def look(self, view: LeaseView) -> bool:
        """Bring ``content`` in step; return whether a new config is in it.

        Raises ConfigError, UnderlayError, and DeviceConflictError for a new
        config whose devices the kernel has no room for.
        """
        config, now = view.config, self._clock()
        is_new = config is not None and (config != self._config or self._is_config_lost)
        is_due = self._is_demanded or now >= self.look_at
        if not is_new and (self.content is None or not is_due):
            return False
        chosen = config if config is not None else self._config
        if chosen is None:
            return False
        # Whatever comes of it: a look that fails is repeated by the lessee's own backoff.
        self._is_demanded = False
        self._is_config_lost &= config is None
        self.look_at = now + self._flags.audit_interval_s
        try:
            found = self._find(chosen, view)
        except ConfigError:
            self._config = chosen
            raise
        if is_new:
            self._check(found.backend, found.underlay)
        self._config, self.content = chosen, found
        return is_new

    def _find(self, config: NetworkConfig, view: LeaseView) -> LeaseContent:
        known = self.content
        backend = (
            known.backend
            if known is not None and known.config == config
            else self._host.load_backend(config, self._flags.node)
        )
        underlay = self._host.find_underlay(self._flags.underlay, config.families)
        _refuse_pod_addresses(config, underlay)
        backend.mtu(underlay)  # raises where the underlay has no room
        node = self._flags.node
        if not self._claimed_at:
            now = self._host.wall_clock().strftime("%Y-%m-%dT%H:%M:%SZ")
            self._claimed_at = _claimed_before(view, node.id) or now
        attributes = LeaseAttributes(
            backend_type=config.backend.type,
            public=dict(underlay.public),
            backend_data=dict(backend.lease_data(underlay)),
            owner=Owner(node.id, node.name, __version__, self._claimed_at, node.boot),
        )
        return LeaseContent(config, backend, underlay, attributes)


def _claimed_before(view: LeaseView, node_id: str) -> str:
    """Return when a node first claimed the lease that it is about to take up again."""
    owners = (lease.attributes.owner for lease in view.leases.values())
    mine = (owner for owner in owners if owner is not None and owner.node_id == node_id)
    return next((owner.claimed_at for owner in mine if owner.claimed_at), "")


def _refuse_pod_addresses(config: NetworkConfig, underlay: Underlay) -> None:
    for address in (*underlay.public.values(), *(i.ip for i in underlay.local.values())):
        whole = config.network(family_of(address))
        if whole is not None and address in whole:
            msg = (
                f"underlay {underlay.device}: address {address} lies inside the pod network "
                f"{whole}; choose another interface with --iface, or another network"
            )
            raise UnderlayError(msg)
