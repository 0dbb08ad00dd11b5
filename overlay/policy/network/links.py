"""Link-local addresses of isolated pods: no lease has them, and policies hold for them too.

A routed pod may send from any of them, to its node alone, so that the link
says who it is. One on the bridge reaches its neighbors there, with the one
that its MAC address makes: others its port does not let through.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final

from overlay.model.address import IPAddress
from overlay.policy.network.table import PolicyMap, PolicyRuleset

_MAP: Final = "ov_links"
_RULE: Final = f"ip6 saddr fe80::/10 iifname vmap @{_MAP}"


@dataclass(frozen=True, slots=True)
class PodLink:
    """The host's end of a pod's link; ``link_local`` is that of a pod on the bridge."""

    name: str
    addresses: tuple[IPAddress, ...]
    link_local: IPv6Address | None = None


def with_links(ruleset: PolicyRuleset, links: Iterable[PodLink]) -> PolicyRuleset:
    """Return the table with what pods send and get by link-local addresses judged as well."""
    by_link: dict[str, str] = {}
    more: dict[str, dict[str, str]] = {"ov_from6": {}, "ov_to6": {}}
    for each in links:
        for word in ("from", "to"):
            chain = _chain(ruleset, word, each.addresses)
            if chain is None:
                continue
            if each.link_local is not None:
                more[f"ov_{word}6"][str(each.link_local)] = chain
            elif word == "from":
                by_link[f'"{each.name}"'] = chain
    maps = {
        name: replace(verdicts, elements={**more[name], **verdicts.elements})
        if more.get(name)
        else verdicts
        for name, verdicts in ruleset.maps.items()
    }
    base = {
        name: (*lines, _RULE) if name == "ov_input" else lines
        for name, lines in ruleset.base.items()
    }
    return replace(ruleset, maps={**maps, _MAP: PolicyMap(_MAP, "ifname", by_link)}, base=base)


def _chain(ruleset: PolicyRuleset, word: str, addresses: Iterable[IPAddress]) -> str | None:
    """Return the chain of a pod's egress ("from") or ingress ("to"), None where it has none."""
    for address in addresses:
        found = ruleset.maps[f"ov_{word}{address.version}"].elements.get(str(address))
        if found is not None:
            return found
    return None
