"""Removing everything that the agent made on this node, and nothing else."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from overlay.kernel import bridge, iptables
from overlay.kernel.base import KernelError
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.nft import listed
from overlay.kernel.nft_policy import NftPolicyTable
from overlay.kernel.nft_ports import PortTable
from overlay.kernel.nft_table import NftTable
from overlay.kernel.pods import detach
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.unix import is_answered
from overlay.model.attachment import parse_attachment
from overlay.model.document import parse_json
from overlay.model.errors import OverlayError, UsageError
from overlay.model.event import FILE
from overlay.model.kernel import ForeignRoute, VxlanLink
from overlay.model.node import POD_BRIDGE
from overlay.plan.diff import diff
from overlay.policy.network.table import POLICY_TABLE
from overlay.policy.ports import PORT_TABLE
from overlay.policy.ruleset import TABLE

HELD_FILE: Final = "held-peers.json"  # in the state directory
_STATE_DIR: Final = Path("/run/overlay")


def reset_node(
    state_dir: Path = _STATE_DIR,
    subnet_file: Path | None = None,
    cni_socket: Path | None = None,
    told: Callable[[str], None] = lambda _line: None,
) -> list[str]:
    """Remove our devices, routes, rules, tables, pod links and files; return a line for each.

    Sysctls stay as they are: others may have come to rely on forwarding. The
    node's lease stays in the store until it ends or is released there. What
    fails is told at the end, after everything else has been tried. Repeating
    it is safe.

    Raises UsageError while an agent is running, KernelError with what could
    not be removed.
    """
    refuse_running_agent(cni_socket or state_dir / "cni.sock")
    removed: list[str] = []
    failed: list[str] = []

    def done(line: str) -> None:
        removed.append(line)
        told(line)

    _reset_pods(state_dir / "attachments", done, failed)
    _reset_bridge(done, failed)
    _reset_kernel(done, failed)
    _reset_filter(done, failed)
    for path in (
        subnet_file or state_dir / "subnet.env",
        cni_socket or state_dir / "cni.sock",
        state_dir / HELD_FILE,
        *sorted(state_dir.glob(f"{FILE}*")),
    ):
        try:
            path.unlink()
            done(f"file {path}")
        except FileNotFoundError:
            continue
        except OSError as exc:
            failed.append(f"{path}: {exc.strerror}")
    if failed:
        msg = f"not removed: {'; '.join(failed)}"
        raise KernelError(msg)
    return removed


def _reset_pods(directory: Path, done: Callable[[str], None], failed: list[str]) -> None:
    """Detach the pods that the agent attached, and forget them."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        try:
            if path.suffix == ".json":
                link = parse_attachment(parse_json(path.read_bytes())).link
                if link and detach(link):
                    done(f"link {link}")
            path.unlink()
        except (OSError, ValueError, OverlayError) as exc:
            failed.append(f"{path}: {exc}")
    with contextlib.suppress(OSError):
        directory.rmdir()


def _reset_kernel(done: Callable[[str], None], failed: list[str]) -> None:
    with contextlib.closing(NetlinkKernel()) as kernel:
        observed = kernel.dump()
        ops = diff((), [item for item in observed if not isinstance(item, ForeignRoute)])
        failures = {failure.op: failure for failure in kernel.apply(ops)}
    devices = {item.name for item in observed if isinstance(item, VxlanLink)}
    for op in ops:
        if op in failures:
            failed.append(str(failures[op]))
        elif isinstance(op.target, VxlanLink) or getattr(op.target, "device", "") not in devices:
            done(str(op.target))  # what hung on a device need not be told with it


def _reset_bridge(done: Callable[[str], None], failed: list[str]) -> None:
    try:
        with RtnlSocket() as rtnl:
            if bridge.remove(rtnl):
                done(f"link {POD_BRIDGE}")
        if listed(PORT_TABLE) is not None:
            PortTable().remove()
            done(f"table {PORT_TABLE}")
    except OverlayError as exc:
        failed.append(str(exc))


def _reset_filter(done: Callable[[str], None], failed: list[str]) -> None:
    try:
        table = NftTable()
        if table.exists():
            table.delete()
            done(f"table {TABLE}")
        if NftPolicyTable().remove():
            done(f"table {POLICY_TABLE}")
    except OverlayError as exc:
        failed.append(str(exc))
    failed += iptables.remove()


def refuse_running_agent(path: Path) -> None:
    """Raise UsageError while an agent answers on the socket ``path``."""
    if is_answered(path):
        msg = f"overlayd answers on {path} and would make everything anew; stop it first"
        raise UsageError(msg)
