"""A route or a rule of others that takes packets before the fabric's own route does."""

from overlay.model.address import IPNetwork, family_of
from overlay.model.kernel import MAIN_TABLE, POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL
from overlay.trace.facts import Hop, RouteFact
from overlay.trace.reasons import Reason
from overlay.trace.words import ip_command


def shadowed(hop: Hop, wanted: IPNetwork) -> tuple[Reason, str, str] | None:
    """Return what goes before the route to ``wanted``, and the command that removes it.

    None where nothing does: then the route itself is gone.
    """
    ip = ip_command(family_of(wanted))
    if hop.rule is not None:
        is_lookup = hop.rule.action == "lookup"
        does = f"leads it to table {hop.rule.table}" if is_lookup else "forbids it"
        return (
            Reason.SHADOWED,
            f"rule {hop.rule.priority} {does} before the route to {wanted} is looked at",
            f"{ip} rule del {hop.rule}",
        )
    found = hop.route if hop.route.is_way else hop.cover
    if found is None or found.prefix is None or found.kind == "local" or not _is_foreign(found):
        return None
    is_first = found.prefix.prefixlen >= wanted.prefixlen and found.prefix.subnet_of(wanted)  # type: ignore[arg-type]  # both are of the packet's family
    if not is_first:
        return None
    return (
        Reason.SHADOWED,
        f"{_named(found)} goes before the route to {wanted}",
        f"{ip} route del {_named(found)}",
    )


def _is_foreign(route: RouteFact) -> bool:
    own = {ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL}
    return route.table in {0, MAIN_TABLE} and route.protocol not in own


def _named(route: RouteFact) -> str:
    """Return the words that name a route to ``ip route del``."""
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    via = f" via {route.gateway}" if route.gateway is not None else ""
    device = f" dev {route.device}" if route.device and route.kind == "unicast" else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"{kind}{route.prefix}{via}{device}{metric}"
