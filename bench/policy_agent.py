"""One pod's label after another, through the agent's own loop, while others write their rules.

From the moment that the store's view is there until the kernel has the table
of it. The monitor of the kernel's notices runs as in an agent, and another
process writes a rule of its own all the time, as kube-proxy does.
"""

import contextlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.clusters import HERE, relabeled
from overlay.agent.attachments import Attachments
from overlay.agent.policy_enforcer import PolicyEnforcer, PolicyOptions
from overlay.agent.status import Status
from overlay.kernel.monitor import Monitor
from overlay.kernel.nft_policy import NftPolicyTable
from overlay.kernel.notices import RulesetChange
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.netpol import Pod, PodKey, World
from overlay.model.policy_view import PolicyView
from overlay.policy.network.compile import CompileOptions
from overlay.policy.network.table import POLICY_TABLE

_MOST_S: Final = 60.0  # until something is in force
_THEIRS: Final = (
    "nft add table inet theirs; nft add set inet theirs s '{ type ipv4_addr; }'; while :; do "
    "nft add element inet theirs s '{ 192.0.2.1 }'; nft flush set inet theirs s; done"
)


class _Held(Attachments):
    """The pods of the node, all of them complete."""

    def __init__(self, place: Path, pods: list[Pod]) -> None:
        super().__init__(place)
        self._all = [
            Attachment(
                AttachmentKey("net", pod.name, "eth0"),
                "/run/netns/none",
                tuple(sorted(pod.addresses, key=lambda a: a.version)),
                f"opod{number}",
                arguments={"K8S_POD_NAMESPACE": pod.namespace, "K8S_POD_NAME": pod.name},
                labels=pod.labels,
                is_complete=True,
            )
            for number, pod in enumerate(pods)
        ]

    def list(self, network: str | None = None) -> "list[Attachment]":
        return self._all if network is None else []


def changes_by_an_agent(world: World, key: PodKey, times: int) -> list[float]:
    """Return the seconds that each change of a pod's label takes until it is in force."""
    done = threading.Event()

    def applied(_world: World, _options: CompileOptions) -> None:
        done.set()

    own = [pod for pod in world.pods.values() if pod.node == HERE]
    table, stop = NftPolicyTable(), threading.Event()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        enforcer = PolicyEnforcer(
            HERE, _Held(Path(place), own), Status(), table, PolicyOptions(), applied=applied
        )
        stack.enter_context(_told(enforcer, stop))
        stack.enter_context(_others())
        found: list[float] = []
        for number in range(times + 1):
            changed = relabeled(world, key, (1, 3)[number % 2])
            view = PolicyView(number, changed.policies, {}, changed.namespaces, pods=changed.pods)
            done.clear()
            started = time.perf_counter()
            enforcer.put(replace(view, revision=number))
            if not done.wait(_MOST_S):
                msg = "a label of a pod changes nothing of the table"
                raise RuntimeError(msg)
            found.append(time.perf_counter() - started)
    return found[1:]  # the first is the whole table


@contextlib.contextmanager
def _told(enforcer: PolicyEnforcer, stop: threading.Event) -> Iterator[None]:
    """Run the enforcer and what tells it of the kernel's changes, in this namespace."""
    monitor = Monitor()

    def listen() -> None:
        while not stop.is_set():
            notices = monitor.wait(0.1)
            enforcer.doubt(
                [n for n in notices if isinstance(n, RulesetChange) and POLICY_TABLE in n.tables]
            )

    threads = [threading.Thread(target=each) for each in (listen, lambda: enforcer.run(stop))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        enforcer.doubt(())
        for thread in threads:
            thread.join()
        monitor.close()


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """Let another process write all the time."""
    writer = subprocess.Popen(["sh", "-c", _THEIRS], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        writer.kill()
        writer.wait()
