"""What a new network config would do to leases that live under the present one.

A node keeps its subnet over restarts only while the config offers it, and
peers reach each other only while backend, VNI and port agree. A change that
moves either is refused unless forced.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from overlay.model.address import FAMILIES, Family
from overlay.model.lease import Lease
from overlay.model.network import NetworkConfig

_SHOWN: Final = 3  # leases named in one reason; the rest is counted
# What both ends of a tunnel must agree on, and what flannel takes for absent keys.
_AGREED: Final[Mapping[str, Mapping[str, Any]]] = {
    "vxlan": {"VNI": 1, "Port": 8472, "GBP": False},
}


def broken_by(
    new: NetworkConfig, current: NetworkConfig | None, leases: Iterable[Lease]
) -> tuple[str, ...]:
    """Return, in words, what ``new`` would break among ``leases``; empty when nothing.

    What ``current`` breaks already is not held against ``new``. Vacant
    reservations do not live, so nothing breaks for them.
    """
    live = [lease for lease in leases if not lease.is_vacant]
    if not live:
        return ()
    return (
        *(reason for family in FAMILIES for reason in _family_reasons(family, new, current, live)),
        *_backend_reasons(new, current, live),
    )


def _family_reasons(
    family: Family, new: NetworkConfig, current: NetworkConfig | None, live: Sequence[Lease]
) -> Iterable[str]:
    def newly(fits: Callable[[NetworkConfig, Lease], bool]) -> list[Lease]:
        return [
            lease
            for lease in live
            if not fits(new, lease) and (current is None or fits(current, lease))
        ]

    whole = new.network(family)
    if whole is None:
        gone = newly(lambda c, lease: lease.subnet.network(family) is None or family in c.ranges)
        if gone:
            yield f"without {family} these leases lose their {family} subnet: {_named(gone)}"
        return
    outside = newly(lambda c, lease: _is_inside(family, c, lease))
    if outside:
        yield f"outside the {family} network {whole}: {_named(outside)}"
    span = new.ranges[family]
    resized = newly(lambda c, lease: _has_length(family, c, lease))
    if resized:
        yield (
            f"with a /{span.prefixlen} for each node these nodes would change their subnet: "
            f"{_named(resized)}"
        )
    left_out = [
        lease
        for lease in newly(lambda c, lease: _is_between(family, c, lease))
        if lease not in outside and lease not in resized
    ]
    if left_out:
        yield f"not between {span.first} and {span.last}: {_named(left_out)}"
    lacking = newly(
        lambda c, lease: (lease.subnet.network(family) is None) <= (family not in c.ranges)
    )
    if lacking:
        yield (
            f"with {family} added these nodes would change their subnet, for their leases have "
            f"no {family} part: {_named(lacking)}"
        )


def _is_inside(family: Family, config: NetworkConfig, lease: Lease) -> bool:
    network, whole = lease.subnet.network(family), config.network(family)
    if network is None or whole is None:
        return network is None
    return network.subnet_of(whole)  # type: ignore[arg-type]  # both are of one family


def _has_length(family: Family, config: NetworkConfig, lease: Lease) -> bool:
    network = lease.subnet.network(family)
    return (
        network is None
        or family not in config.ranges
        or network.prefixlen == config.ranges[family].prefixlen
    )


def _is_between(family: Family, config: NetworkConfig, lease: Lease) -> bool:
    network = lease.subnet.network(family)
    return network is None or (family in config.ranges and network in config.ranges[family])


def _backend_reasons(
    new: NetworkConfig, current: NetworkConfig | None, live: Sequence[Lease]
) -> Iterable[str]:
    if current is None:
        strangers = [lease for lease in live if lease.attributes.backend_type != new.backend.type]
        if strangers:
            yield f"backend {new.backend.type} cannot reach leases of another backend: " + _named(
                strangers
            )
        return
    old, wanted = current.backend, new.backend
    if old.type != wanted.type:
        yield (
            f"backend {old.type} becomes {wanted.type}: until every agent has restarted, "
            f"nodes of the two do not reach each other: {_named(live)}"
        )
        return
    for key, default in _AGREED.get(old.type, {}).items():
        before, after = old.options.get(key, default), wanted.options.get(key, default)
        if before != after:
            yield (
                f"Backend.{key} {before} becomes {after}: until every agent has restarted, "
                f"nodes of the two do not reach each other: {_named(live)}"
            )


def _named(leases: Sequence[Lease]) -> str:
    shown = ", ".join(f"{lease.subnet} ({lease.node})" for lease in leases[:_SHOWN])
    more = len(leases) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
