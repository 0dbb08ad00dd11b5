"""What somebody else does to the subject's kernel: every kind of drift, one command each."""

import re
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from overlay.lab import netns
from overlay.lab.chaos import picture
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Plant, Planted
from overlay.lab.chaos.names import names_of
from overlay.lab.chaos.picture import DEVICE, FILTER, FORWARDING, LINKS, SYSCTLS
from overlay.lab.chaos.stage import Stage
from overlay.lab.errors import LabError
from overlay.lab.topology import NODE_DEVICE, router_interface
from overlay.model.address import Family

GROUP: Final = "drift"
_ROUNDS: Final = 5
_STRANGER: Final = "02:00:00:00:00:99"
MEDIAN_S: Final = 0.05
_FIGHTS: Final = 8
DOWN_S: Final = 1.0
_FLOOD: Final = 40_000  # notifications; the agent's buffers hold about 16,000 (16 MiB)

_NEVER: Final = "never repaired"
_CUT_OFF: Final = "never repaired, pods cut off"
_NEW_MAC: Final = "new MAC, no entries, pods dead"
_FLUSHED: Final = "never repaired (nftables mode)"
_UNKNOWN: Final = "not measured"
_HAS_NONE: Final = "has none"


def faults() -> list[Fault]:
    """Return the kinds of drift, each planted several times."""
    told = [
        ("route deleted", LINKS, "ip route del {subnet}", _NEVER),
        ("route changed", LINKS, "ip route replace {subnet} dev eth0", _UNKNOWN),
        (
            "route to a node's address deleted",
            LINKS,
            "ip route del {public} table 20310",
            _HAS_NONE,
        ),
        ("all routes flushed", LINKS, "ip route flush table main proto 79", _NEVER),
        ("rule deleted", LINKS, "ip rule del priority 20310", _HAS_NONE),
        ("neighbor deleted", LINKS, "ip neigh del {gateway} dev overlay.1", _NEVER),
        (
            "neighbor changed",
            LINKS,
            f"ip neigh replace {{gateway}} lladdr {_STRANGER} dev overlay.1 nud permanent",
            _UNKNOWN,
        ),
        ("FDB entry deleted", FORWARDING, "bridge fdb del {mac} dev overlay.1", _NEVER),
        (
            "FDB entry changed",
            FORWARDING,
            "bridge fdb replace {mac} dev overlay.1 dst 192.0.2.99 self permanent",
            _UNKNOWN,
        ),
        (
            "FDB entry added",
            FORWARDING,
            f"bridge fdb append {_STRANGER} dev overlay.1 dst 192.0.2.99",
            _UNKNOWN,
        ),
        ("device set down", LINKS, "ip link set overlay.1 down", _CUT_OFF),
        ("device deleted", LINKS, "ip link del overlay.1", _NEW_MAC),
        ("device renamed", LINKS, "ip link set overlay.1 name other0", _UNKNOWN),
        ("device's MAC changed", LINKS, f"ip link set overlay.1 address {_STRANGER}", _UNKNOWN),
        ("device's MTU changed", LINKS, "ip link set overlay.1 mtu 1200", _UNKNOWN),
        ("device's address removed", LINKS, "ip addr del {own}/32 dev overlay.1", _CUT_OFF),
        ("device's address added", LINKS, "ip addr add 198.18.0.1/32 dev overlay.1", _UNKNOWN),
        ("nft flush ruleset", FILTER, "nft flush ruleset", _FLUSHED),
        ("nft table deleted", FILTER, "nft delete table inet overlay", _FLUSHED),
        (
            "nft rule added",
            FILTER,
            "nft add rule inet overlay ov_postrouting counter accept",
            _UNKNOWN,
        ),
        ("nft set flushed", FILTER, "nft flush set inet overlay ov_nodes4", _HAS_NONE),
        ("sysctl ip_forward = 0", SYSCTLS, "sysctl -qw net.ipv4.ip_forward=0", _UNKNOWN),
    ]
    found = [
        Fault(
            name,
            GROUP,
            _command(part, words),
            flannel,
            _ROUNDS,
            is_lossless="added" in name,
            median_target_s=MEDIAN_S,
        )
        for name, part, words, flannel in told
    ]
    return [
        *found,
        Fault(
            "nft rule deleted", GROUP, _rule_deleted, _FLUSHED, _ROUNDS, median_target_s=MEDIAN_S
        ),
        Fault(f"route deleted {_FIGHTS} times on end", GROUP, _fight, _NEVER),
        Fault("notifications lost (ENOBUFS)", GROUP, _flood, _UNKNOWN, since=FROM_RETURN),
        Fault("underlay down and up", GROUP, underlay_down_and_up, _UNKNOWN, 3, FROM_RETURN),
    ]


def _command(part: str, words: str) -> Plant:
    def plant(stage: Stage) -> Planted:
        return damaged(stage, part, words.format(**names_of(stage)).split())

    return plant


def damaged(stage: Stage, part: str, words: Sequence[str]) -> Planted:
    """Run a command in the subject that damages a part of what is right."""
    told = stage.log_size(SUBJECT)
    at = time.monotonic()
    stage.run(SUBJECT, *words)

    def right() -> bool:
        # What was never noticed was never damaged: a look may come before the repair.
        return stage.log_size(SUBJECT) > told and stage.is_node_same(SUBJECT, part)

    return Planted(right, at)


def _rule_deleted(stage: Stage) -> Planted:
    shown = netns.inside(
        stage.namespace(SUBJECT),
        lambda: (
            subprocess.run(
                ["nft", "--handle", "list", "chain", "inet", "overlay", "ov_postrouting"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        ),
    )
    handles = re.findall(r"^\t\t(?!type ).* # handle (\d+)$", shown, re.MULTILINE)
    words = ["nft", "delete", "rule", "inet", "overlay", "ov_postrouting", "handle", handles[-1]]
    return damaged(stage, FILTER, words)


def _fight(stage: Stage) -> Planted:
    stage.restart(SUBJECT)
    subnet = names_of(stage)["subnet"]
    planted = damaged(stage, LINKS, ["ip", "route", "del", subnet])
    for _ in range(_FIGHTS - 1):
        stage.await_that(lambda: subnet in _routes(stage), f"the route to {subnet} is back")
        planted = damaged(stage, LINKS, ["ip", "route", "del", subnet])
    return Planted(planted.right, planted.at, undo=lambda: stage.restart(SUBJECT))


def _routes(stage: Stage) -> str:
    return picture.ip_show(stage.namespace(SUBJECT), ["route show proto 79"])


def _flood(stage: Stage) -> Planted:
    names, told = names_of(stage), stage.log_size(SUBJECT)
    stage.signal(SUBJECT, signal.SIGSTOP)
    try:
        stage.run(SUBJECT, "ip", "neigh", "del", names["gateway"], "dev", DEVICE)
        pairs = range(_FLOOD // 2)
        addresses = [f"198.18.{number >> 8}.{number & 255}" for number in pairs]
        commands = [f"route add {each} dev {NODE_DEVICE}" for each in addresses]
        commands += [f"route del {each} dev {NODE_DEVICE}" for each in addresses]
        netns.ip_batch(stage.namespace(SUBJECT), commands)
        dropped = netns.inside(stage.namespace(SUBJECT), _dropped)
        if not dropped:
            msg = f"{_FLOOD} notifications did not fill the agent's buffer"
            raise LabError(msg)
    finally:
        at, mark = time.monotonic(), stage.stream.mark()
        stage.signal(SUBJECT, signal.SIGCONT)

    def right() -> bool:
        return stage.log_size(SUBJECT) > told and stage.is_node_same(SUBJECT, LINKS)

    return Planted(right, at, lost_since=mark, note=f"{dropped} notifications dropped")


def _dropped() -> int:
    """Return the notifications that sockets in the thread's namespace lost (``Drops``)."""
    with open("/proc/thread-self/net/netlink", encoding="ascii") as lines:  # noqa: PTH123 - the thread's, not the process's
        next(lines)
        return sum(int(line.split()[8]) for line in lines)


def underlay_down_and_up(stage: Stage) -> Planted:
    """Set the subject's underlay down and up again, with the route that the kernel drops."""
    gateway = router_interface(Family.IPV4).ip
    netns.ip_batch(stage.namespace(SUBJECT), [f"link set {NODE_DEVICE} down"])
    time.sleep(DOWN_S)
    at, mark = time.monotonic(), stage.stream.mark()
    # The kernel drops the default route with the link; whoever made it makes it again.
    netns.ip_batch(
        stage.namespace(SUBJECT),
        [f"link set {NODE_DEVICE} up", f"route replace default via {gateway} dev {NODE_DEVICE}"],
    )

    def undo() -> None:
        # A first ARP request that the bridge is not up for yet is repeated after a second.
        stage.await_that(stage.is_flowing, "packets pass again")

    return Planted(lambda: stage.is_node_same(SUBJECT, LINKS), at, undo, mark)
