"""What happens between the subject's agent and etcd: cut off, silent, far away.

etcd and the other nodes work on. Rows of the group ``store``.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

from overlay.lab.chaos.agent import change, with_peers
from overlay.lab.chaos.cast import LIVING, SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Plant, Planted
from overlay.lab.chaos.stage import Stage
from overlay.lab.chaos.store import GROUP, KEEPALIVE_S, NOTICED_S, TARGET_S, used_percent
from overlay.lab.proxy import Proxy

CUT_OFF_S: Final = 12.0  # longer than it takes to notice a silent connection
_FEW: Final = 30
_PROXY_PORTS: Final = 1000  # above etcd's
_UNKNOWN: Final = "not measured"
_LINGER: Final = "deleted peers stay 156 s, changed ones for good"


def faults() -> list[Fault]:
    """Return the faults of a connection; forwarding goes on through all of them."""
    cut = [
        ("cut off (black hole)", _cut_off(compact=False), _UNKNOWN),
        ("cut off, etcd restarted and compacted", _cut_off(compact=True), _LINGER),
    ]
    poor = [
        ("half-open connections", _half_open, NOTICED_S),
        ("connections that a middlebox swallows", _swallowed, KEEPALIVE_S),
        ("etcd 3 ms away", _slow(0.003), 1.0),
        ("etcd 300 ms away", _slow(0.3), TARGET_S),
    ]
    return [
        *(
            Fault(name, GROUP, plant, flannel, 3, FROM_RETURN, is_lossless=True, target_s=TARGET_S)
            for name, plant, flannel in cut
        ),
        *(
            Fault(name, GROUP, plant, rounds=3, is_lossless=True, target_s=target_s)
            for name, plant, target_s in poor
        ),
    ]


@contextlib.contextmanager
def cut_off(stage: Stage) -> Iterator[None]:
    """Drop the subject's packets to and from etcd in silence, for the length of the block."""
    ports = ", ".join(str(urlsplit(url).port) for url in stage.lab.topology.etcd_endpoints)
    stage.run(SUBJECT, "nft", _dropping(f"dport {{ {ports} }}", f"sport {{ {ports} }}"))
    try:
        yield
    finally:
        stage.run(SUBJECT, "nft", "delete table inet chaos")


def _dropping(out: str, into: str) -> str:
    """Return what drops TCP packets in silence: those that leave, and those that come."""
    rules = [
        "table inet chaos {",
        f" chain out {{ type filter hook output priority 0; tcp {out} drop; }}",
        f" chain in {{ type filter hook input priority 0; tcp {into} drop; }}",
        "}",
    ]
    return "\n".join(rules)


def _cut_off(*, compact: bool) -> Plant:
    def plant(stage: Stage) -> Planted:
        made = with_peers(stage, _FEW)
        with cut_off(stage):
            began = time.monotonic()
            made = change(stage, made)
            if compact:
                stage.gateway.compact()
                stage.etcd.stop()
                stage.etcd.start()

            def elapse() -> None:
                time.sleep(max(0.0, began + CUT_OFF_S - time.monotonic()))

            percent = used_percent(stage, elapse)
            leases = stage.leases()
            at = time.monotonic()
        note = f"for {CUT_OFF_S:.0f} s; agents used {percent:.1f} % of a core"
        return Planted(
            right=lambda: stage.is_in_step(LIVING, leases),
            at=at,
            undo=lambda: stage.delete(list(made)),
            note=note,
        )

    return plant


def _half_open(stage: Stage) -> Planted:
    """Drop the packets of the connections there are, both ways; new ones work."""
    made = with_peers(stage, _FEW)
    host = urlsplit(stage.lab.topology.etcd_endpoints[0]).hostname
    shown = stage.output(SUBJECT, "ss", "-tnH", "state", "established", "dst", str(host))
    ports = ", ".join(sorted(line.split()[2].rpartition(":")[2] for line in shown.splitlines()))
    at = time.monotonic()
    stage.run(SUBJECT, "nft", _dropping(f"sport {{ {ports} }}", f"dport {{ {ports} }}"))
    made = change(stage, made)
    leases = stage.leases()

    def undo() -> None:
        stage.run(SUBJECT, "nft", "delete table inet chaos")
        stage.delete(list(made))

    return Planted(lambda: stage.is_in_step([SUBJECT], leases), at, undo)


def _swallowed(stage: Stage) -> Planted:
    with _behind_proxies(stage, 0.0) as (proxies, close):
        made = with_peers(stage, _FEW)
        at = time.monotonic()
        for proxy in proxies:
            proxy.swallow()
        made = change(stage, made)
        leases = stage.leases()

    def undo() -> None:
        stage.delete(list(made))
        close()

    return Planted(lambda: stage.is_in_step([SUBJECT], leases), at, undo)


def _slow(delay_s: float) -> Plant:
    def plant(stage: Stage) -> Planted:
        with _behind_proxies(stage, delay_s) as (_, close):
            made = with_peers(stage, _FEW)
            at = time.monotonic()
            made = change(stage, made)
            leases = stage.leases()

        def undo() -> None:
            stage.delete(list(made))
            close()

        return Planted(lambda: stage.is_in_step([SUBJECT], leases), at, undo)

    return plant


@contextlib.contextmanager
def _behind_proxies(
    stage: Stage, delay_s: float
) -> Iterator[tuple[list[Proxy], Callable[[], None]]]:
    """Restart the subject's agent with a proxy before each member; a failed block undoes it."""
    stack = contextlib.ExitStack()
    proxies = [
        stack.enter_context(
            Proxy(
                stage.namespace("underlay"),
                url,
                (urlsplit(url).port or 0) + _PROXY_PORTS,
                delay_s,
            )
        )
        for url in stage.lab.topology.etcd_endpoints
    ]

    def close() -> None:
        with stack:
            stage.restart(SUBJECT)

    try:
        stage.restart(SUBJECT, f"--etcd-endpoints={','.join(proxy.url for proxy in proxies)}")
        yield proxies, close
    except BaseException:
        close()
        raise
