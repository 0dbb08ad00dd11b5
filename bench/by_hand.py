"""Two nodes whose pods reach each other over VXLAN, made by ``ip`` alone.

No agent, no rule of routing or filter, nothing tracked: what is left is what encapsulation and
forwarding cost by themselves.
"""

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from bench.bed import DEVICE, Bed, Node, namespace
from bench.iperf import Path
from overlay.lab import netns

_TUNNEL: Final = "vx"
_PORT: Final = 8472
_MTU: Final = 1450  # bytes
_PODS: Final = 2
_NUMBERS: Final = (101, 102)


@contextlib.contextmanager
def by_hand(test: Bed) -> Iterator[tuple[Path, Path]]:
    """Make them; yield the ways across the nodes and within the first. All is gone after it."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(test.node(number)) for number in _NUMBERS]
        pods = [[stack.enter_context(namespace()) for _ in range(_PODS)] for _ in nodes]
        for here, there in ((0, 1), (1, 0)):
            _tunnel(nodes[here], nodes[there], here, there)
            for number, pod in enumerate(pods[here]):
                _pod(nodes[here], pod, here, number)
        (first, second), (far, _) = pods
        yield (
            Path("across, by hand", first, far, _address(1, 0)),
            Path("local, by hand", first, second, _address(0, 1)),
        )


def _tunnel(node: Node, peer: Node, here: int, there: int) -> None:
    netns.inside(node.namespace, lambda: netns.write_sysctls({"ipv4/ip_forward": "1"}))
    gateway = _address(there, -1)
    ends = f"local {node.address} remote {peer.address} dev {DEVICE}"
    netns.ip_batch(
        node.namespace,
        [
            f"link add {_TUNNEL} mtu {_MTU} type vxlan id 9 dstport {_PORT} {ends} nolearning",
            f"link set {_TUNNEL} address {_mac(here)}",
            f"addr add {_address(here, -1)}/32 dev {_TUNNEL}",
            f"link set {_TUNNEL} up",
            f"neigh add {gateway} lladdr {_mac(there)} dev {_TUNNEL} nud permanent",
            f"route add {gateway}/24 via {gateway} dev {_TUNNEL} onlink",
        ],
    )


def _pod(node: Node, pod: str, here: int, number: int) -> None:
    link, gateway, address = f"pod{number}", "169.254.1.1", _address(here, number)
    netns.ip_batch(
        node.namespace,
        [
            f"link add {link} mtu {_MTU} type veth peer name eth0 mtu {_MTU} netns {pod}",
            f"addr add {gateway}/32 dev {link}",
            f"link set {link} up",
            f"route add {address}/32 dev {link}",
        ],
    )
    netns.ip_batch(
        pod,
        [
            f"addr add {address}/32 dev eth0",
            "link set eth0 up",
            f"route add default via {gateway} dev eth0 onlink",
        ],
    )


def _address(node: int, pod: int) -> str:
    """Return a pod's address, for -1 the first of its node's subnet."""
    return str(IPv4Address(f"10.99.{node}.0") + pod + 1)


def _mac(node: int) -> str:
    return f"02:00:00:00:99:{node:02x}"
