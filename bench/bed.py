"""The test bed: an underlay with etcd on it, near and far, and nodes as namespaces."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import machine
from bench.gateway import Gateway
from bench.peers import CONFIG, PREFIX, pairs
from bench.proxy import DelayProxy
from overlay.lab import netns, signals
from overlay.lab.etcd import EmbeddedEtcd
from overlay.lab.fabric import require_root

AWAY_S: Final = 0.003  # each way
DEVICE: Final = "eth0"
_ETCD: Final = "172.31.255.254"
_NEAR, _FAR = 2379, 2381
_HOUR_S: Final = 3600
_NUMBERS: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace with ``eth0`` on the underlay, and a directory of its own."""

    namespace: str
    address: str
    place: Path


class Bed:
    """An underlay of 172.16.0.0/12 on a bridge, and an etcd that all nodes reach."""

    def __init__(
        self, place: Path, gateway: Gateway, namespace: str, pid: int, *, are_leases_own: bool
    ) -> None:
        self.etcd = gateway
        self._are_own = are_leases_own
        self.etcd_pid = pid
        self.namespace = namespace
        self._place = place
        self._lease = gateway.grant(24 * _HOUR_S)

    @property
    def address(self) -> str:
        """Return the address of the bed's own namespace on the underlay."""
        return _ETCD

    def endpoint(self, *, away: bool = False) -> str:
        """Return etcd's URL, the near one's or that of the proxy that is 3 ms away."""
        return f"http://{_ETCD}:{_FAR if away else _NEAR}"

    def write(self, config: str, peers: int) -> None:
        """Leave the config and this many peers in etcd, and no lease of anybody else."""
        wanted = self.pairs(range(peers))
        there = self.etcd.keys(f"{PREFIX}/subnets/")
        self.etcd.delete_all(key for key in there if key not in wanted)
        self.etcd.put(f"{PREFIX}/config", config.encode())
        have = set(there)
        self.put({key: value for key, value in wanted.items() if key not in have})

    def pairs(self, numbers: Iterable[int]) -> dict[str, bytes]:
        """Return keys and values of peers, in the form that was asked for."""
        return pairs(numbers, are_own=self._are_own)

    def put(self, wanted: dict[str, bytes]) -> None:
        """Put leases that end in a day."""
        self.etcd.put_all(wanted, self._lease)

    def put_request(self, key: str, value: bytes) -> bytes:
        """Return the put of one lease as it goes on the wire."""
        return self.etcd.put_request(key, value, self._lease)

    @contextlib.contextmanager
    def node(self, number: int = 1) -> Iterator[Node]:
        """Make a node with the address 172.16.0.NUMBER; it is gone after the block."""
        with namespace() as name:
            place = self._place / name
            place.mkdir()
            port = name.replace("ovb-", "p")[:15]
            netns.ip_batch(
                self.namespace,
                [
                    f"link add {port} type veth peer name {DEVICE} netns {name}",
                    f"link set {port} master br0 up",
                ],
            )
            address = f"172.16.0.{number}"
            commands = [f"link set {DEVICE} up", f"addr add {address}/12 dev {DEVICE}"]
            # flannel takes the interface of the default route where none is named.
            netns.ip_batch(name, [*commands, f"route add default via {_ETCD}"])
            yield Node(name, address, place)


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """Make a network namespace; it is gone after the block. Needs root."""
    require_root()
    name = f"ovb-{os.getpid()}-{next(_NUMBERS)}"
    netns.add([name])
    try:
        yield name
    finally:
        with signals.held():
            netns.delete([name])


@contextlib.contextmanager
def bed(config: str = CONFIG, peers: int = 0, *, are_leases_own: bool = False) -> Iterator[Bed]:
    """Make a test bed with its etcd; all of it is gone after the block. Needs root.

    etcd's data lies on a tmpfs where there is one; what agents write does not.
    """
    with contextlib.ExitStack() as stack:
        place, data = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=parent)))
            for parent in (None, machine.etcd_place())
        )
        name = stack.enter_context(namespace())
        netns.ip_batch(
            name,
            [
                "link add br0 type bridge stp_state 0",
                f"addr add {_ETCD}/12 dev br0",
                "link set br0 up",
            ],
        )
        etcd = EmbeddedEtcd(
            data / "etcd",
            client_url=f"http://{_ETCD}:{_NEAR}",
            command_prefix=tuple(netns.command_prefix(name)),
        )
        stack.enter_context(etcd)
        far = netns.inside(name, lambda: DelayProxy((_ETCD, _FAR), (_ETCD, _NEAR), AWAY_S))
        netns.inside(name, lambda: stack.enter_context(far))
        gateway = netns.inside(name, lambda: Gateway(_ETCD, _NEAR))
        stack.callback(gateway.close)
        made = Bed(place, gateway, name, etcd.pid or 0, are_leases_own=are_leases_own)
        made.write(config, peers)
        yield made
