"""What keeps the node's packet filter, sysctls and offloads in step with the plan."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from overlay.kernel import iptables, sysctl
from overlay.kernel.host import offload
from overlay.kernel.nft_generation import OwnWrites
from overlay.kernel.nft_table import NftTable
from overlay.model.address import IPNetwork
from overlay.model.errors import OverlayError
from overlay.plan.planner import Site
from overlay.policy.egress import FirewallPlan, Nodes, compile_ruleset, with_nodes
from overlay.policy.ruleset import Ruleset

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass over the packet filter did: ``errors`` keep the node from being ready.

    ``repairs`` name what was not as wanted, ``foreign`` those transactions
    that were not our own doing.
    """

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    applied: int = 0
    repairs: tuple[str, ...] = ()
    foreign: Sequence[int] = ()


def settings(site: Site, links: Iterable[str] = ()) -> tuple[sysctl.Sysctl, ...]:
    """Return the sysctls that a site needs; see ``sysctl.wanted`` for ``links``."""
    tunnel = site.backend.tunnel
    devices = tuple(tunnel.devices.values()) if tunnel is not None else ()
    return sysctl.wanted(site.config, site.underlay, devices, links)


class PacketFilter(Protocol):
    """What the reconciler asks of the node's packet filter; repeating either is safe."""

    def filter(
        self,
        site: Site,
        nodes: Nodes,
        *,
        direct: bool,
        audit: bool,
        told: Sequence[int] = (),
    ) -> Outcome:
        """Bring the filter in step; with ``audit`` look whether somebody else changed it.

        ``told`` are the transactions that touched it, by generation, each told once.
        """

    def surroundings(self, site: Site, checksums: str) -> Outcome:
        """Set what forwarding needs beside the filter; ``checksums`` as ``offload.ensure``."""


class Firewall:
    """The table ``inet overlay``, accept rules for iptables, sysctls of forwarding, offloads.

    ``own`` is shared with what else of the agent writes rules. ``release`` is
    the kernel's, of which some spoil checksums.
    """

    def __init__(self, own: OwnWrites | None = None, release: str | None = None) -> None:
        self._release = os.uname().release if release is None else release
        self._table = NftTable(own=own if own is not None else OwnWrites())
        self._applied: Ruleset | None = None
        self._compiled: tuple[Site, bool, Ruleset] | None = None

    def filter(
        self,
        site: Site,
        nodes: Nodes,
        *,
        direct: bool,
        audit: bool,
        told: Sequence[int] = (),
    ) -> Outcome:
        """Bring the filter in step; with ``audit`` look whether somebody else changed it.

        One changed peer costs one changed set element. Where the kernel ``told``
        that somebody else touched the table it is written anew at once, not
        listed first. Repeating it is safe.
        """
        errors: list[str] = []
        applied, is_repair = 0, False
        foreign = self._table.foreign(told)
        try:
            ruleset = self._compile(site, nodes, direct=direct)
            if audit and not self._table.is_remembered:
                self._applied = None  # others wrote while we did: written again, to be sure
            if audit and self._applied is not None:
                is_touched = not all(map(self._table.is_undone, foreign))
                is_repair = is_touched or not self._table.is_ours(self._applied)
            applied = self._write(ruleset, is_changed=is_repair)
        except OverlayError as exc:
            self._applied = None
            errors.append(str(exc))
        return Outcome(
            tuple(errors),
            applied=applied,
            repairs=("the table inet overlay",) if is_repair else (),
            foreign=foreign,
        )

    def _compile(self, site: Site, nodes: Nodes, *, direct: bool) -> Ruleset:
        """Return the ruleset; of one site only the nodes change."""
        known = self._compiled
        if known is not None and known[0] is site and known[1] is direct:
            ruleset = with_nodes(known[2], nodes)
        else:
            plan = FirewallPlan(
                own=site.own.subnet,
                config=site.config,
                tunnel=site.backend.tunnel,
                nodes=nodes,
                direct=direct,
                underlay=site.underlay.device,
            )
            ruleset = compile_ruleset(plan)
        self._compiled = (site, direct, ruleset)
        return ruleset

    def _write(self, ruleset: Ruleset, *, is_changed: bool) -> int:
        """Write what differs from what was applied last; return how many writes that took."""
        known = self._applied
        if known is None or is_changed:
            self._table.apply(ruleset)
        else:
            if ruleset.changes(known) == ():
                return 0
            try:
                self._table.apply_delta(known, ruleset)
            except OverlayError as exc:
                log.warning("%s; the table is written whole", exc)
                self._table.apply(ruleset)
        self._applied = ruleset
        return 1

    def surroundings(self, site: Site, checksums: str) -> Outcome:
        """Set what forwarding needs beside the table.

        A sysctl that cannot be set is an error; a foreign chain that may drop
        what pods send is a warning, for it may have rules that let them through.
        The backend's devices must be there. Repeating it is safe.
        """
        tunnel = site.backend.tunnel
        devices = tuple(tunnel.devices.values()) if tunnel is not None else ()
        networks: list[IPNetwork] = [span.network for span in site.config.ranges.values()]
        sysctls = sysctl.ensure(settings(site, sysctl.ipv6_links()))
        offloads = offload.ensure(devices, checksums, self._release)
        for change in offloads.changes:
            log.info("%s", change)
        return Outcome(
            (*sysctls.problems, *offloads.problems),
            warnings=iptables.ensure(networks),
            repairs=(*map(str, sysctls.changes), *offloads.changes),
        )
