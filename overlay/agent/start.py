"""``overlayd``: flags in, the store asked at once, and then the agent.

Modules of the agent are loaded while the store answers.
"""

import functools
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final

from overlay import __version__
from overlay.agent.clock import boot_clock
from overlay.agent.flags import Flags, parse_flags
from overlay.agent.host_wait import HostWait, is_patient
from overlay.agent.logs import set_up_logs
from overlay.kernel.underlay import find_underlay
from overlay.model.errors import OverlayError, UsageError

if TYPE_CHECKING:
    from overlay.agent.announcement import Announce
    from overlay.agent.main import Agent
    from overlay.store.base import LeaseStore

log = logging.getLogger(__name__)

_OPEN_FILES: Final = 65536  # some 6 for each of as many clients as may wait (control)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``overlayd``; return its exit status (docs/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if is_patient(words):
            _run_patiently(words)
        else:
            agent = _built(words)
            _end_by_signals(agent.end)
            agent.run()
    except OverlayError as exc:
        sys.stderr.write(f"overlayd: {exc}\n")
        return exc.exit_code
    except Exception:
        log.exception("overlayd ends by a fault of its own; forwarding stays as it is")
        return 70  # EX_SOFTWARE, sysexits.h
    return 0


def _run_patiently(words: Sequence[str]) -> None:
    """Run the agent once flags and host allow it, unready until then."""
    wait = HostWait()
    _end_by_signals(wait.stop.set)
    wait.listen()
    agent = wait.until(functools.partial(_built, words))
    if agent is not None:
        wait.agent = agent
        _end_by_signals(agent.end)
        if not wait.stop.is_set():  # by a signal in between
            agent.run()


def _end_by_signals(end: Callable[[], None]) -> None:
    def handle(number: int, _frame: FrameType | None) -> None:
        log.info("%s: ending; forwarding stays as it is", signal.Signals(number).name)
        end()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _built(words: Sequence[str]) -> "Agent":
    """Return the agent that flags and environment ask for. Raises OverlayError."""
    flags = parse_flags(words)
    set_up_logs(flags.log_format, flags.log_level)
    _require_root()
    _raise_file_limit()
    if not flags.waits_for_host:
        find_underlay(flags.underlay, ())  # a wrong --iface shows at once, whatever the store does
    agent = _agent(flags)
    log.info("overlayd %s on node %s", __version__, flags.node.name)
    return agent


def _require_root() -> None:
    if os.geteuid() != 0:
        msg = "overlayd sets routes and devices: run it as root"
        raise UsageError(msg)


def _raise_file_limit() -> None:
    """Allow as many open files as the host lets us: each pod that is attached needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _agent(flags: Flags) -> "Agent":
    """Return the agent on the store that the flags name."""
    store, announce = _store(flags)
    # Behind the store's first question, whose answer takes as long as to load all this.
    from overlay.agent.main import Agent

    return Agent(flags, store, announce=announce)


def _store(flags: Flags) -> "tuple[LeaseStore, Announce | None]":
    """Return the store, and how to announce there that the node's network is up.

    Of the two kinds only one is loaded.
    """
    if flags.kube is not None:
        from overlay.store.kube import KubeLeaseStore

        nodes = KubeLeaseStore(flags.kube.access, clock=boot_clock)
        return nodes, nodes.set_network_available if flags.kube.is_announced else None
    from overlay.store.etcd import EtcdLeaseStore  # gRPC: 0.1 s, not for --help

    # Sleep counts: a store may be put back meanwhile.
    leases = EtcdLeaseStore(flags.etcd, clock=boot_clock)
    leases.list_early()
    return leases, None
