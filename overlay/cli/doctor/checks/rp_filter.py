"""Whether the reverse path filter drops what peers send.

A strict filter (1) takes a packet only from the link that its answer would
leave by. The larger of ``all`` and the link's own value counts
(Documentation/networking/ip-sysctl.rst). IPv6 has none.
"""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, named
from overlay.kernel import sysctl
from overlay.kernel.host.addresses import route_link
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import Family, IPAddress, family_of
from overlay.model.kernel import Rule

_STRICT: Final = 1


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    v4 = [device for device in fabric.devices if family_of(device.local) is Family.IPV4]
    links = dict.fromkeys([*(device.name for device in v4), *fabric.underlays])
    strict = [link for link in links if _value(link) == _STRICT]
    for device in v4:
        if device.name in strict and not any(isinstance(o, Rule) for o in fabric.objects):
            reason = (
                f"{device.name} filters strictly (rp_filter = 1), and the rule that leads answers "
                "to nodes back through it is gone: what other nodes send to pods is dropped"
            )
            yield error(reason, "systemctl restart overlayd")
    peers = [peer for peer in fabric.peers if family_of(peer) is Family.IPV4]
    for link in (link for link in fabric.underlays if link in strict):
        astray = _astray(facts, peers, link)
        if astray:
            reason = (
                f"{link} filters strictly (rp_filter = 1), but answers to {named(astray)} leave by "
                "another link: what they send is dropped"
            )
            yield error(reason, f"sysctl -w net/ipv4/conf/{link}/rp_filter=2")
    yield Fine(", ".join(f"{link} = {_value(link)}" for link in links) or "no tunnel")


def _astray(facts: Facts, peers: list[IPAddress], link: str) -> list[IPAddress]:
    index = facts.links()[link].index
    with RtnlSocket() as rtnl:
        return [peer for peer in peers if route_link(rtnl, peer) not in {0, index}]


def _value(link: str) -> int:
    found = (sysctl.read(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", link))
    return max(int(value or 0) for value in found)


CHECK: Final = Check("rp-filter", "rp_filter of tunnel and underlay, and the way back", _run)
