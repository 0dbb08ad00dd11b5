"""What the running kernel can do, tried in a network namespace that is gone afterwards.

A list of modules says little: features are built in, or loaded when they are
first used. So a link of each kind is made, and a ruleset of the kind that the
agent writes is applied.
"""

import errno
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.netns import enter_new
from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, Request, RtnlSocket
from overlay.kernel.wire import attribute

_RTM_NEWLINK: Final = 16
_IFINFOMSG: Final = struct.Struct("=BBHiII")
_IFLA_IFNAME, _IFLA_LINKINFO = 3, 18
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_PORT = 1, 15  # linux/if_link.h, IFLA_VXLAN_*
_TIMEOUT_S: Final = 10.0
_NO_NFT: Final = "no `nft` on the PATH"
RULESETS: Final[Mapping[str, str]] = {
    "nftables": "a ruleset such as overlayd's",
    "nftables-policy": "a ruleset such as that of network policies",
    "nftables-bridge": "a ruleset such as that of pods on the bridge",
}
# Every expression that policy/egress.py, policy/network/render.py and policy/ports.py write.
_TEXTS: Final[Mapping[str, str]] = {
    "nftables": """\
table inet probe {
	set nodes { type ipv4_addr; elements = { 192.0.2.1 } }
	set pods { type ipv4_addr; flags interval; elements = { 10.244.0.0/16 } }
	chain tunnel { ip saddr @nodes accept; counter drop comment "no peer"; }
	chain input {
		type filter hook input priority 0; policy accept;
		udp dport 8472 @th,96,24 0x1 goto tunnel
	}
	chain forward {
		type filter hook prerouting priority 0; policy accept;
		fib saddr . iif oif missing counter drop
	}
	chain out { type filter hook forward priority 0; reject with icmpx type admin-prohibited; }
	chain nat {
		type nat hook postrouting priority 95; policy accept;
		ip saddr @pods meta l4proto { tcp, udp } masquerade to :8473-65535 fully-random
	}
}
""",
    "nftables-policy": """\
table inet probe-policy {
	counter denied { }
	set ports { type inet_proto . inet_service; flags interval; elements = { tcp . 80-90 } }
	set itself { type ipv4_addr . ipv4_addr; elements = { 10.244.0.2 . 10.244.0.2 } }
	chain refuse {
		meta l4proto . th dport @ports return
		limit rate 10/second burst 5 packets log prefix "p" group 2 snaplen 128
		counter name "denied" drop
	}
	map from { type ipv4_addr : verdict; elements = { 10.244.0.2 : jump refuse } }
	chain forward {
		type filter hook forward priority -5; policy accept;
		ct state established,related accept
		ip saddr . ip daddr @itself accept
		icmpv6 type { nd-neighbor-solicit } accept
		ip saddr vmap @from
	}
}
""",
    "nftables-bridge": """\
table bridge probe {
	map ports { type ifname : verdict; }
	chain port {
		ether saddr != 02:00:00:00:00:01 counter drop
		ether type arp arp saddr ether != 02:00:00:00:00:01 counter drop
		ether type arp arp operation request arp saddr ip 0.0.0.0 accept
		icmpv6 type nd-neighbor-advert @th,64,128 != { 0xfd000000000000000000000000000002 } drop
		ether type ip6 ip6 saddr { fd00::2 } accept
	}
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname vmap @ports
	}
}
""",
}


def missing(kinds: Sequence[str]) -> Mapping[str, str]:
    """Return what the kernel lacks, with its own words: of the link ``kinds`` and RULESETS.

    Raises KernelError where nothing can be tried: not root, or no namespace to be had.
    """
    answers: list[Mapping[str, str]] = []
    faults: list[KernelError] = []

    def work() -> None:
        try:
            enter_new()
            answers.append(_missing_here(kinds))
        except KernelError as exc:
            faults.append(exc)

    # The namespace is this thread's alone and goes with it.
    thread = threading.Thread(target=work, name="features")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return answers[0]


def _missing_here(kinds: Sequence[str]) -> dict[str, str]:
    lacking: dict[str, str] = {}
    with RtnlSocket() as rtnl:
        requests = [_new_link(kind) for kind in kinds]
        for refusal in rtnl.send(requests):
            if refusal.errno == errno.EPERM:
                raise KernelError("links cannot be tried: not permitted")
            lacking[kinds[refusal.index]] = refusal.text
    for name, text in _TEXTS.items():
        problem = _nft_problem(text)
        if problem is not None:
            lacking[name] = problem
            if problem == _NO_NFT:
                break
    return lacking


def _new_link(kind: str) -> Request:
    info = attribute(_INFO_KIND, kind.encode())
    if kind == "vxlan":
        number = attribute(_VXLAN_ID, struct.pack("=I", 1))
        info += attribute(_INFO_DATA, number + attribute(_VXLAN_PORT, struct.pack("!H", 8472)))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, f"p-{kind}"[:15].encode())
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + attribute(_IFLA_LINKINFO, info))


def _nft_problem(text: str) -> str | None:
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return _NO_NFT
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    first = next((line for line in done.stderr.splitlines() if line.strip()), "")
    return None if done.returncode == 0 else first or f"nft ended with status {done.returncode}"
