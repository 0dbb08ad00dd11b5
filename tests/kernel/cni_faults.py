"""One CNI request carried out again and again, cut off at another of its steps each time.

    nsenter --net=NODE python -m tests.kernel.cni_faults POD FOLDER MODE COMMAND

The agent's own code on the kernel of the namespace that it is started in. A
step is a call of a C function that makes a system call, or of a function of the
agent that has to do with one; the first run lists them. Then each of them once:

- ``refused``: the system call fails, with EMFILE;
- ``exhausted``: so do all later ones that need a descriptor, or tell the kernel anything;
- ``fault``: the function raises what nobody expects;
- ``killed``: the process gets SIGKILL before the system call, and a new one starts.

Prints JSON: what was done at which step, the answer, what was left after it,
and after a restart and GC. It judges nothing.
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from overlay.agent.attachments import Attachments
from overlay.agent.cni import CniService
from overlay.agent.layer2 import Layer2
from overlay.agent.status import RUNNING, Status
from overlay.kernel import pods
from overlay.kernel.links import list_links
from overlay.kernel.netns import open_rtnl
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.rtnl import RtnlSocket
from tests.unit.worlds import site

# C functions behind which there is a system call that changes something or may fail.
SYSTEM: Final = frozenset(
    {
        *("open", "write", "pwrite", "pread", "replace", "unlink", "bind", "dup", "ioctl"),
        *("send", "recv", "fork_exec", "pipe2"),
    }
)
LASTING: Final = frozenset(("open", "bind", "dup", "ioctl", "send", "fork_exec", "pipe2"))
# Where nothing is kept and nothing changed: to fail there is to fail in what calls it.
PURE: Final = frozenset(
    {
        *("address", "attachment", "cni_config", "cni_request", "document", "events", "messages"),
        *("pod_requests", "pool", "salvage", "spans", "status", "subnet"),
    }
)
# A thread that cannot leave a pod's namespace has no way on; what closes and undoes is not
# disturbed; and an error in ``answer`` itself is the socket's.
SPARED: Final = frozenset(
    {
        *("_enter", "__exit__", "close", "answer", "refusal_of", "undo", "_take_back", "_follow"),
        *("version_for_errors", "format_error"),
    }
)
_GENERATOR: Final = 0x20  # inspect.CO_GENERATOR: its call is where it goes on, too
NETWORK: Final = "fabric"
ALL_STALE: Final[dict[str, Any]] = {"cni.dev/valid-attachments": []}


@dataclass(frozen=True)
class Step:
    """``name`` says who calls what, ``count`` which time that is in one request."""

    name: str
    count: int
    is_system: bool


class Tracer:
    """Notes the steps of the calling thread, and does something before one of them.

    With ``lasting`` also before each later system call of those names.
    """

    def __init__(
        self,
        at: Step | None = None,
        act: Callable[[], None] | None = None,
        lasting: frozenset[str] = frozenset(),
    ) -> None:
        self.steps: list[Step] = []
        self.is_fired = False
        self._at, self._act, self._lasting = at, act, lasting
        self._counts: dict[str, int] = {}

    def run(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns."""
        sys.setprofile(self._trace)
        try:
            return work()
        finally:
            sys.setprofile(None)

    def _trace(self, frame: FrameType, event: str, what: Any) -> None:
        name = _named(frame.f_code, event, what)
        if not name:
            return
        if self.is_fired:
            if event == "c_call" and what.__name__ in self._lasting and self._act is not None:
                self._act()
            return
        count = self._counts[name] = self._counts.get(name, 0) + 1
        step = Step(name, count, event == "c_call")
        self.steps.append(step)
        if step == self._at and self._act is not None:
            self.is_fired = True
            self._act()


def _named(code: CodeType, event: str, what: Any) -> str:
    """Return the name of a step, empty for what is none."""
    if event == "c_call" and what.__name__ in SYSTEM:
        is_ours = code.co_filename != __file__ and not isinstance(what.__self__, str | bytes)
        return f"{code.co_name}: {what.__name__}" if is_ours else ""
    if event != "call" or "/overlay/" not in code.co_filename:
        return ""
    module = Path(code.co_filename).stem
    is_one = not code.co_flags & _GENERATOR and not code.co_name.startswith("<")
    is_one &= module not in PURE and code.co_name not in SPARED
    return f"{module}.{code.co_name}" if is_one else ""


class Place:
    """A node, a pod, and the service of an agent that was just started."""

    def __init__(self, pod: str, folder: Path, mode: str) -> None:
        self.pod, self.mode = pod, mode
        self._result: Any = None  # of the last ADD, as a runtime keeps it
        status = Status()
        status.update(phase=RUNNING, site=site(), mtu=1450)
        self.attachments = Attachments(folder)
        self.layer2 = Layer2(self.attachments)
        self.service = CniService(status, self.attachments, self.layer2)
        self.service.recover()
        self._networks = tuple(site().own.subnet.networks())

    def ask(self, command: str) -> tuple[int, Any]:
        is_one = command in {"ADD", "DEL", "CHECK"}
        variables = {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
        if is_one:
            more = {"CNI_CONTAINERID": "one", "CNI_NETNS": self.pod, "CNI_IFNAME": "eth0"}
            variables |= more
        config: dict[str, Any] = {"cniVersion": "1.1.0", "name": NETWORK, "type": "overlay"}
        if self.mode == "ipam":
            config |= {"type": "bridge", "ipam": {"type": "overlay"}}
        else:
            config["mode"] = self.mode
        if command == "CHECK":
            config["prevResult"] = self._result
        text = json.dumps(config | ({} if is_one else ALL_STALE)).encode()
        netns = os.open(self.pod, os.O_RDONLY | os.O_CLOEXEC) if is_one else None
        try:
            status, output = self.service.answer(
                variables, text, PodNamespace(netns) if netns is not None else None
            )
        finally:
            if netns is not None:
                os.close(netns)
        answer = json.loads(output) if output else None
        if command == "ADD" and not status:
            self._result = answer
        return status, answer

    def left(self) -> list[str]:
        """Return what there is of pods: links, records, addresses in use, the pod's own link."""
        with RtnlSocket() as rtnl:
            found = list(pods.addresses_in_use(rtnl))
        netns = os.open(self.pod, os.O_RDONLY | os.O_CLOEXEC)
        with open_rtnl(netns) as inside:
            found += [f"the pod's {name}" for name in list_links(inside) if name == "eth0"]
        os.close(netns)
        found += [f"record of {a.link}, {a.is_complete}" for a in self.attachments.list()]
        for network in self._networks:
            used, _ = self.attachments.usage(network)
            found += [f"{used} addresses in use"] if used else []
        return found

    def is_whole(self) -> bool:
        """Return whether the attachment is there, with all that belongs to it."""
        held = self.attachments.list()
        if len(held) != 1 or not held[0].is_complete:
            return False
        if self.mode == "ipam":
            return True
        with RtnlSocket() as rtnl:
            in_use = pods.addresses_in_use(rtnl)
            links = pods.host_links(rtnl)
        name = held[0].link
        return (
            set(in_use.get(name, ())) == set(held[0].addresses)
            and name in links  # a removal that nobody could wait for may end any time
            and links[name].is_up
            and "the pod's eth0" in self.left()
        )


def in_process(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a process of its own, None where that was killed."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:  # noqa: BLE001 - told on standard error, and by the empty answer
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123 - a descriptor
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def refuse() -> None:
    """Fail as a system call does."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def stumble() -> None:
    """Fail as a program with a fault does."""
    msg = "what nobody expects"
    raise LookupError(msg)


def die() -> None:
    """End as a program that is killed does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trials:
    """All that is done to one command in one mode."""

    def __init__(self, pod: str, folder: Path, mode: str, command: str) -> None:
        self._start = partial(Place, pod, folder, mode)
        self._command = command

    def survived(self) -> dict[str, Any]:
        """Fail at each step, in one agent that goes on."""
        place = self._start()
        self._once(place, Tracer())  # what is made by the first one of all
        steps, plain = self._once(place, Tracer())
        outcomes = []
        for step in steps:
            if step.count > 1 and not step.is_system:
                continue
            tracers = {"fault": Tracer(step, stumble)}
            if step.is_system:
                tracers = {"refused": Tracer(step, refuse)}
                if step.name.endswith(tuple(LASTING)):
                    tracers["exhausted"] = Tracer(step, refuse, LASTING)
            for what, tracer in tracers.items():
                _, outcome = self._once(place, tracer)
                found = {"what": what, "step": step.name, "fired": tracer.is_fired}
                outcomes.append({**found, **outcome})
        return {"plain": plain, "outcomes": outcomes}

    def _once(self, place: Place, tracer: Tracer) -> tuple[list[Step], dict[str, Any]]:
        if self._command != "ADD":
            assert place.ask("ADD")[0] == 0
        status, document = tracer.run(lambda: place.ask(self._command))
        outcome = {
            "code": document["code"] if status else 0,
            "text": document["msg"] if status else "",
            "left": place.left(),
            "whole": place.is_whole(),
        }
        assert place.ask("DEL")[0] == 0
        return tracer.steps, {**outcome, "then": place.left()}

    def killed(self) -> list[dict[str, Any]]:
        """Kill an agent before each system call, and start another one."""
        steps = in_process(lambda: [astuple(s) for s in self._once(self._start(), Tracer())[0]])
        outcomes = []
        for step in (Step(*each) for each in steps):
            if step.is_system:
                tracer = Tracer(step, die)
                answer = in_process(lambda tracer=tracer: self._once(self._start(), tracer)[1])  # type: ignore[misc]
                found = {"what": "killed", "step": step.name, "fired": answer is None}
                outcomes.append({**found, **in_process(self._after)})
        return outcomes

    def _after(self) -> dict[str, Any]:
        place = self._start()
        found = {"left": place.left(), "whole": place.is_whole()}
        assert place.ask("GC")[0] == 0
        return {**found, "then": place.left()}


def main(pod: str, folder: Path, mode: str, command: str) -> None:
    """Print what came of every step."""
    trials = Trials(pod, folder, mode, command)
    survived = in_process(trials.survived)
    json.dump({**survived, "outcomes": survived["outcomes"] + trials.killed()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
