"""What checks look at. Each fact is read once, and only when a check asks for it."""

import contextlib
import functools
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from overlay.cli import shapes
from overlay.cli.control import call
from overlay.cli.doctor.fabric import Fabric, fabric_of
from overlay.cli.doctor.lazy import Lazy
from overlay.cli.flags import StoreConfig, socket_path, store_config
from overlay.kernel.host.addresses import list_addresses
from overlay.kernel.host.path_mtu import largest_packets
from overlay.kernel.links import LinkInfo, list_links
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.nft_listing import read_rules
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import IPAddress, IPInterface
from overlay.model.errors import OverlayError
from overlay.model.lease import Lease, LeaseView
from overlay.policy.listing import Listing
from overlay.store.base import LeaseStore

AGENT_S: Final = 2.0  # for one answer of the agent
_ECHO_S: Final = 1.0  # for the echoes of one round
STORE_S: Final = 2.0  # for one answer of etcd


class CannotTellError(OverlayError):
    """What a check needs to know cannot be known here; the text says why."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look: ``root`` is the host's, another in a container."""

    root: Path
    socket: Path
    state_dir: Path
    cni_conf_dir: Path


@dataclass(frozen=True, slots=True)
class Facts:
    """All that checks may ask. Calling a fact may raise OverlayError: it cannot be known."""

    places: Places
    release: str  # the kernel's, as `uname -r` prints it
    wall_clock: Callable[[], float]  # seconds since 1970
    links: Lazy[Mapping[str, LinkInfo]]
    addresses: Lazy[Mapping[int, Sequence[IPInterface]]]
    fabric: Lazy[Fabric]
    rules: Lazy[Listing]  # of nftables
    agent: Lazy[Mapping[str, Any]]  # the answer to `status`
    mesh: Lazy[Mapping[str, Any]]  # the answer to `mesh`
    mtu: Lazy[Mapping[str, Any]]  # the answer to `mtu`
    drift: Callable[[], Sequence[str]]  # the agent's own `diff`, asked anew each time
    # The largest packet that each of some addresses answers, up to a size in bytes.
    echoes: Callable[[Iterable[IPAddress], int], Mapping[IPAddress, int]]
    where: StoreConfig  # the leases are
    store: Lazy[LeaseStore]
    view: Lazy[LeaseView]

    def own_lease(self) -> Lease | None:
        """Return this node's lease: the one of an address of this host, or of the agent's id.

        None where the store holds none. Raises OverlayError.
        """
        here = {address.ip for found in self.addresses().values() for address in found}
        node_id = None
        with contextlib.suppress(OverlayError):
            node_id = (self.agent().get("node") or {}).get("id")
        for lease in self.view().leases.values():
            owner = lease.attributes.owner
            if owner is not None and node_id is not None and owner.node_id == node_id:
                return lease
        for lease in self.view().leases.values():
            if here & set(lease.attributes.public.values()):
                return lease
        return None


def gather(args: Namespace) -> Facts:
    """Return the facts of the host, the agent and the store that the command line names.

    Nothing is read yet. Raises UsageError for flags that cannot be used.
    """
    socket = socket_path(args)
    config = replace(store_config(args), timeout_s=STORE_S)
    store: Lazy[LeaseStore] = Lazy(lambda: args.open_store(config))
    return Facts(
        places=Places(
            root=args.root,
            socket=socket,
            state_dir=args.state_dir,
            # A second path that begins with / would win over the root.
            cni_conf_dir=args.root / str(args.cni_conf_dir).lstrip("/"),
        ),
        release=os.uname().release,
        wall_clock=time.time,
        links=Lazy(_links),
        addresses=Lazy(_addresses),
        fabric=Lazy(_fabric),
        rules=Lazy(read_rules),
        agent=Lazy(lambda: call(socket, "status", like=shapes.STATUS, timeout_s=AGENT_S)),
        mesh=Lazy(lambda: call(socket, "mesh", like=shapes.MESH, timeout_s=AGENT_S)),
        mtu=Lazy(lambda: call(socket, "mtu", like=shapes.MTU, timeout_s=AGENT_S)),
        drift=lambda: call(socket, "diff", like=shapes.DIFF, timeout_s=AGENT_S)["ops"],
        echoes=functools.partial(largest_packets, wait_s=_ECHO_S),
        where=config,
        store=store,
        view=Lazy(lambda: store().view()),
    )


def _links() -> Mapping[str, LinkInfo]:
    with RtnlSocket() as rtnl:
        return list_links(rtnl)


def _addresses() -> Mapping[int, Sequence[IPInterface]]:
    with RtnlSocket() as rtnl:
        return list_addresses(rtnl)


def _fabric() -> Fabric:
    with contextlib.closing(NetlinkKernel()) as kernel:
        return fabric_of(kernel.dump())
