"""Frames between ports of a bridge, shown to the filters of routed packets (br_netfilter).

``modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1``, and
``-ip6tables``. Tables of the family ``bridge`` cannot ask conntrack on every
kernel, so that policies between pods of one bridge stand on this.
"""

import subprocess
from typing import Final

from overlay.kernel import sysctl
from overlay.kernel.base import KernelError
from overlay.kernel.sysctl import Sysctl

_CALLS: Final = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
_TIMEOUT_S: Final = 10.0


def show_bridged_frames() -> bool:
    """Have them shown; return whether they were not. Raises KernelError."""
    try:
        values = [sysctl.read(name) for name in _CALLS]
    except OSError as exc:
        msg = f"{_CALLS[0]}: {exc.strerror}"
        raise KernelError(msg) from exc
    if values == ["1"] * len(_CALLS):
        return False
    if None in values:
        _load()
    problems = sysctl.ensure(Sysctl(name, "1") for name in _CALLS).problems
    if problems:
        msg = (
            "pods on one bridge cannot be kept apart by policies: "
            f"{problems[0]}; `modprobe br_netfilter` on the host"
        )
        raise KernelError(msg)
    return True


def _load() -> None:
    try:
        subprocess.run(
            ["modprobe", "br_netfilter"], capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # the sysctl that is missing is told of
