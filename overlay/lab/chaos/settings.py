"""The main kinds of drift once more, in fabrics of both families and without a tunnel.

Groups of their own, each with a lab of its own. In the one of both families
the stream runs over IPv6, and so does what is damaged.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from overlay.lab import pods
from overlay.lab.chaos.cast import DUAL_STACK, HOST_GW, PARTNER
from overlay.lab.chaos.drift import MEDIAN_S, damaged, underlay_down_and_up
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted
from overlay.lab.chaos.names import names_of
from overlay.lab.chaos.picture import (
    DEVICE_V6,
    FILTER,
    FORWARDING_V6,
    LINKS,
    LINKS_V6,
    SYSCTLS_V6,
)
from overlay.lab.chaos.stage import Stage
from overlay.model.address import Family

_ROUNDS: Final = 3
_STRANGER: Final = "02:00:00:00:00:99"
_UNKNOWN: Final = "not measured"

Names = Callable[[Stage], dict[str, str]]


def faults() -> list[Fault]:
    """Return the kinds of drift of each setting."""
    both = [
        ("IPv6 route deleted", LINKS_V6, "ip -6 route del {subnet}"),
        (
            "route to a node's IPv6 address deleted",
            LINKS_V6,
            "ip -6 route del {public} table 20310",
        ),
        ("all IPv6 routes flushed", LINKS_V6, "ip -6 route flush table main proto 79"),
        ("IPv6 rule deleted", LINKS_V6, "ip -6 rule del priority 20310"),
        ("IPv6 neighbor deleted", LINKS_V6, f"ip -6 neigh del {{gateway}} dev {DEVICE_V6}"),
        ("FDB entry of IPv6 deleted", FORWARDING_V6, f"bridge fdb del {{mac}} dev {DEVICE_V6}"),
        ("device of IPv6 set down", LINKS_V6, f"ip link set {DEVICE_V6} down"),
        ("device of IPv6 deleted", LINKS_V6, f"ip link del {DEVICE_V6}"),
        (
            "MAC of the device of IPv6 changed",
            LINKS_V6,
            f"ip link set {DEVICE_V6} address {_STRANGER}",
        ),
        (
            "address of the device of IPv6 removed",
            LINKS_V6,
            f"ip addr del {{own}}/128 dev {DEVICE_V6}",
        ),
        ("nft flush ruleset, both families", FILTER, "nft flush ruleset"),
        ("nft set of IPv6 nodes flushed", FILTER, "nft flush set inet overlay ov_nodes6"),
        ("sysctl IPv6 forwarding = 0", SYSCTLS_V6, "sysctl -qw net.ipv6.conf.all.forwarding=0"),
    ]
    plain = [
        ("host-gw: route deleted", LINKS, "ip route del {subnet}"),
        ("host-gw: route changed", LINKS, "ip route replace {subnet} dev eth0"),
        ("host-gw: all routes flushed", LINKS, "ip route flush table main proto 79"),
        ("host-gw: nft flush ruleset", FILTER, "nft flush ruleset"),
        ("host-gw: nft set flushed", FILTER, "nft flush set inet overlay ov_nodes4"),
    ]
    return [
        *(_drift(DUAL_STACK, partial(names_of, family=Family.IPV6), *each) for each in both),
        *(_drift(HOST_GW, _names_v4, *each) for each in plain),
        Fault(
            "host-gw: underlay down and up",
            HOST_GW,
            underlay_down_and_up,
            _UNKNOWN,
            _ROUNDS,
            FROM_RETURN,
            setting=HOST_GW,
        ),
    ]


def _drift(setting: str, names: Names, name: str, part: str, words: str) -> Fault:
    def plant(stage: Stage) -> Planted:
        return damaged(stage, part, words.format(**names(stage)).split())

    return Fault(name, setting, plant, _UNKNOWN, _ROUNDS, median_target_s=MEDIAN_S, setting=setting)


def _names_v4(stage: Stage) -> dict[str, str]:
    file = pods.read_subnet_file(stage.lab.dir.subnet_file(PARTNER))
    return {"subnet": str(file.subnets[Family.IPV4].network)}
