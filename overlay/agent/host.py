"""What an agent takes from the machine that it runs on: files, backends, underlay, kernel, filter.

The defaults are this machine's; a simulation passes in its own.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from overlay.agent.clock import boot_clock
from overlay.agent.events import wall_clock
from overlay.agent.files import read_subnet_file, write_file
from overlay.agent.firewall import Firewall, PacketFilter
from overlay.agent.status import Bell
from overlay.kernel.base import Kernel
from overlay.kernel.netlink import NetlinkKernel, check_devices
from overlay.kernel.nft_generation import OwnWrites
from overlay.kernel.underlay import UnderlayFlags, find_underlay
from overlay.model.address import Family
from overlay.model.network import NetworkConfig
from overlay.model.node import NodeIdentity, Underlay
from overlay.model.subnet import Subnet
from overlay.plan.backend import Backend, Tunnel
from overlay.plan.registry import load_backend


@dataclass(frozen=True, slots=True)
class Host:
    """One machine; ``bell`` makes an event that a thread waits on."""

    wall_clock: Callable[[], datetime] = wall_clock
    boot_clock: Callable[[], float] = boot_clock
    bell: Callable[[], Bell] = threading.Event
    kernel: Callable[[], Kernel] = NetlinkKernel
    firewall: Callable[[OwnWrites], PacketFilter] = Firewall
    load_backend: Callable[[NetworkConfig, NodeIdentity], Backend] = load_backend
    find_underlay: Callable[[UnderlayFlags, Iterable[Family]], Underlay] = find_underlay
    check_devices: Callable[[Tunnel, NodeIdentity, Underlay], None] = check_devices
    read_subnet_file: Callable[[Path], Subnet | None] = read_subnet_file
    write_file: Callable[[Path, str], None] = write_file
