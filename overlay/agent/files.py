"""Files that others read: replaced whole or not at all."""

import contextlib
import os
import threading
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

from overlay.model.address import FAMILIES, Family, IPNetwork, family_of
from overlay.model.network import NetworkConfig
from overlay.model.subnet import Subnet, subnet_of

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NAMES = {
    Family.IPV4: ("FLANNEL_NETWORK", "FLANNEL_SUBNET"),
    Family.IPV6: ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
}
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


def format_subnet_file(config: NetworkConfig, subnet: Subnet, mtu: int) -> str:
    """Return ``subnet.env`` in flannel's form: the first address of the subnet is the gateway's.

    FLANNEL_IPMASQ is always true: it tells flannel's CNI plugin that the agent
    sees to masquerading in whichever mode, so its delegate must not.
    """
    lines: list[str] = []
    for family in FAMILIES:
        whole, own = config.network(family), subnet.network(family)
        if whole is not None and own is not None:
            network, mine = _NAMES[family]
            lines += [f"{network}={whole}", f"{mine}={own[1]}/{own.prefixlen}"]
    lines += [f"FLANNEL_MTU={mtu}", "FLANNEL_IPMASQ=true"]
    return "\n".join(lines) + "\n"


def read_subnet_file(path: Path) -> Subnet | None:
    """Return the subnet that a ``subnet.env`` names; None where there is none to be read."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    networks: list[IPNetwork] = []
    for family, (_network, mine) in _NAMES.items():
        if mine in values:
            try:
                interface = ip_interface(values[mine].strip())
            except ValueError:
                return None
            if family_of(interface) is not family or "%" in values[mine]:
                return None
            networks.append(interface.network)
    return subnet_of(*networks) if networks else None


def write_file(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, readable by root alone. Raises OSError; the old file stays.

    A file that says so already is left alone: that needs no room on a full disk.
    Two threads may write the same file: one of them wins whole.
    """
    if not _says(path, text):
        replace_file(path, text)


def replace_file(path: Path, text: str, *, sync: bool = True) -> None:
    """Do as ``write_file`` whatever the file says. Raises OSError; the old file stays.

    Without ``sync`` it may be lost with the machine, not with the program.
    """
    # By hand, for each pod waits for one of these: with tempfile and pathlib it
    # took 45 microseconds on a tmpfs, so 10 (November 2026).
    temporary = f"{path.parent}/.{path.name}.{threading.get_ident()}"
    try:
        descriptor = os.open(temporary, _WRITE, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, _WRITE, 0o600)
    try:
        try:
            rest = text.encode()
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 - see above
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108 - see above
        raise


def _says(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    wanted = text.encode()
    try:
        return os.read(descriptor, len(wanted) + 1) == wanted
    except OSError:
        return False
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """Return the name of this boot: kernel objects and monotonic times end with it."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
