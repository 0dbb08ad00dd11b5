"""Random steps of ten runtimes at a time against the real agent, which is killed now and then.

Ten workers, each with a pod, a network name and interfaces of its own, in mode
``ptp``, in mode ``bridge``, or as a plugin that has its addresses from us, ADD,
DEL (once, twice, without a namespace), CHECK and collect at random; most of
them speak the protocol themselves, some steps go through the real plugin.
Meanwhile the agent is killed (SIGKILL) and started again. No address may be
given to two at once, what was answered must hold, and in the end nothing may
be left.

``OVERLAY_CNI_STRESS_STEPS`` is the number of steps (2000 by default, 10000 for
the full proof), ``OVERLAY_CNI_STRESS_SEED`` what they are drawn from.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import pytest

from overlay.agent.cni_wire import MAGIC
from tests.e2e.agents import World
from tests.kernel.netns import Netns, host_unchanged
from tests.unit.cni_plugins import Plugin, build

pytestmark = pytest.mark.e2e

STEPS: Final = int(os.environ.get("OVERLAY_CNI_STRESS_STEPS", "2000"))
SEED: Final = int(os.environ.get("OVERLAY_CNI_STRESS_SEED", "1"))
WORKERS: Final = 10
INTERFACES: Final = ("eth0", "eth1")
KINDS: Final[Sequence[Mapping[str, Any]]] = (
    {"type": "overlay"},
    {"type": "overlay", "mode": "bridge"},
    {"type": "bridge", "ipam": {"type": "overlay"}},
)
# 13 addresses for 20 interfaces: the subnet is full at times, and each address used many times.
CONFIG: Final = json.dumps(
    {
        "Network": "10.244.0.0/16",
        "SubnetLen": 28,
        "EnableIPv6": True,
        "IPv6Network": "fd00:1::/48",
        "Backend": {"Type": "vxlan"},
    }
)
COUNT: Final = 13
FORMS: Final = ("python", "shim") if shutil.which("cc") and shutil.which("make") else ("python",)
STEPS_BETWEEN_KILLS: Final = 250
ALL_STALE: Final[Mapping[str, Any]] = {"cni.dev/valid-attachments": []}

BAD_CONFIG, TRY_LATER, EXISTS, FULL, UNKNOWN = 7, 11, 100, 101, 3
_REQUEST: Final = struct.Struct("<4sIII")
_ANSWER: Final = struct.Struct("<4sII")
_DEADLINE_S: Final = 60.0

Answer = tuple[int, Any]


class CutOffError(Exception):
    """The agent is away, or went before its answer was whole: nobody knows what it did."""


def ask(path: str, variables: Mapping[str, str], config: object, netns: Path | None) -> Answer:
    """Speak the plugin's protocol; return exit status and the document printed."""
    text = json.dumps(config).encode()
    block = b"".join(f"{name}={value}\0".encode() for name, value in variables.items() if value)
    with contextlib.ExitStack() as stack:
        rights = []
        if netns is not None:
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.settimeout(_DEADLINE_S)
        try:
            client.connect(path)
            head = _REQUEST.pack(MAGIC, len(rights), len(block), len(text))
            client.sendmsg([head + block + text], rights)
            client.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: client.recv(65536), b""))
        except (FileNotFoundError, ConnectionError) as exc:
            raise CutOffError from exc
    if len(data) < _ANSWER.size or len(data) < _ANSWER.size + _ANSWER.unpack_from(data)[2]:
        raise CutOffError
    output = data[_ANSWER.size :]
    return _ANSWER.unpack_from(data)[1], json.loads(output) if output else None


def execute(plugin: Path, variables: Mapping[str, str], config: object) -> Answer:
    """Execute the plugin as a runtime does."""
    done = subprocess.run(
        [plugin],
        input=json.dumps(config).encode(),
        env=dict(variables),
        capture_output=True,
        check=False,
        timeout=_DEADLINE_S,
    )
    assert done.stderr == b""
    document: Any = json.loads(done.stdout) if done.stdout else None
    if done.returncode and document["code"] == TRY_LATER:
        raise CutOffError
    return done.returncode, document


class Ledger:
    """Who holds which address, as the runtimes know it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[str, str] = {}

    def take(self, holder: str, addresses: list[str]) -> None:
        with self._lock:
            for address in addresses:
                other = self._holders.setdefault(address, holder)
                assert other == holder, f"{address} is given to {other} and to {holder}"

    def give_back(self, holder: str) -> None:
        """Forget a holder's addresses: before DEL is sent, as others may get them from then on."""
        with self._lock:
            self._holders = {a: h for a, h in self._holders.items() if h != holder}

    def addresses(self) -> list[str]:
        with self._lock:
            return list(self._holders)


class Runtime:
    """One worker: its pod, its network, and what it was told it has."""

    def __init__(
        self, number: int, path: str, pod: Netns, ledger: Ledger, plugins: Sequence[Plugin]
    ) -> None:
        self._plugins = plugins
        self._random = random.Random(f"{SEED}/{number}")
        self._network, self._container = f"net{number}", f"pod{number}-{'c' * 40}"
        self._kind = KINDS[number % len(KINDS)]
        self._path, self._pod, self._ledger = path, pod, ledger
        self._held: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def step(self) -> None:
        interface = self._random.choice(INTERFACES)
        is_held = interface in self._held
        draw = self._random.random()
        if draw < 0.06:
            self._collect()
        elif not is_held:
            self._add(interface) if draw < 0.85 else self._unheld(interface)
        elif draw < 0.25:
            self._check(interface)
        elif draw < 0.35:
            self._add_again(interface)
        else:
            self._delete(interface)

    def collect_all(self) -> None:
        for interface in self._held:
            self._ledger.give_back(self._holder(interface))
        self._held.clear()
        assert self._insist("GC", extra=ALL_STALE) == (0, None)

    def check_all(self) -> None:
        for interface in self._held:
            self._check(interface)

    def _add(self, interface: str) -> None:
        extra: dict[str, Any] = {}
        if self._random.random() < 0.1 and (known := self._ledger.addresses()):
            extra = {"runtimeConfig": {"ips": [self._random.choice(known)]}}
        try:
            status, result = self._ask("ADD", interface, extra=extra)
        except CutOffError:
            self._note("ADD cut off")
            self._delete(interface)  # what a runtime does with a pod that did not come up
            return
        if status:
            assert result["code"] in {BAD_CONFIG if extra else FULL, FULL, TRY_LATER}, result
            self._note(f"ADD refused with {result['code']}")
            if result["code"] == TRY_LATER:
                time.sleep(0.1)  # the agent was just started
            return
        self._held[interface] = result
        addresses = [ip["address"].partition("/")[0] for ip in result["ips"]]
        assert len(addresses) == 2, "both families"
        self._ledger.take(self._holder(interface), addresses)
        self._note("ADD")

    def _add_again(self, interface: str) -> None:
        with contextlib.suppress(CutOffError):
            status, error = self._ask("ADD", interface)
            assert status == 1
            assert error["code"] in {EXISTS, TRY_LATER}
            self._note("ADD again")

    def _delete(self, interface: str) -> None:
        self._held.pop(interface, None)
        self._ledger.give_back(self._holder(interface))
        has_netns = self._random.random() < 0.5
        for _ in range(self._random.choice((1, 2))):
            assert self._insist("DEL", interface, has_netns=has_netns) == (0, None)
            has_netns = False
        self._note("DEL")

    def _check(self, interface: str) -> None:
        previous = {"prevResult": self._held[interface]}
        assert self._insist("CHECK", interface, extra=previous) == (0, None)
        self._note("CHECK")

    def _unheld(self, interface: str) -> None:
        if self._random.random() < 0.5:
            self._delete(interface)
            return
        result = {"interfaces": [{"name": interface, "sandbox": str(self._pod.path)}]}
        status, error = self._insist("CHECK", interface, extra={"prevResult": result})
        assert (status, error["code"]) == (1, UNKNOWN)
        self._note("CHECK of nothing")

    def _collect(self) -> None:
        kept = [interface for interface in self._held if self._random.random() < 0.7]
        for interface in [i for i in self._held if i not in kept]:
            del self._held[interface]
            self._ledger.give_back(self._holder(interface))
        valid = [{"containerID": self._container, "ifname": i} for i in kept]
        extra = {"cni.dev/valid-attachments": valid}
        assert self._insist("GC", extra=extra) == (0, None)
        self._note("GC")

    def _insist(self, command: str, interface: str = "", **options: Any) -> Answer:
        """Ask again as long as the agent is away."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                return self._ask(command, interface, **options)
            except CutOffError:
                assert time.monotonic() < deadline, f"{command}: the agent stays away"
                self._note(f"{command} cut off")
                time.sleep(0.02)  # the step of polling

    def _ask(
        self,
        command: str,
        interface: str = "",
        *,
        has_netns: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> Answer:
        netns = self._pod.path if has_netns and interface else None
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self._container if interface else "",
            "CNI_NETNS": str(netns or ""),
            "CNI_IFNAME": interface,
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=pod",
            "CNI_PATH": "/opt/cni/bin",
        }
        config = {
            "cniVersion": "1.1.0",
            "name": self._network,
            "socket": self._path,
            **self._kind,
            **(extra or {}),
        }
        if self._random.random() < 0.1:
            plugin = self._random.choice(self._plugins)
            self._note(f"through the plugin, {plugin.form}")
            return execute(plugin.path, variables, config)
        return ask(self._path, variables, config, netns)

    def _holder(self, interface: str) -> str:
        return f"{self._container[:6]} {interface}"

    def _note(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


class Stress:
    """The world, its agent, and the workers."""

    def __init__(self, world: World, pods: list[Netns]) -> None:
        self.world = world
        self.state = world.place / "state"
        self.path = str(self.state / "cni.sock")
        self.agent = world.agent()
        self.agent.wait_ready()
        ledger = Ledger()
        plugins = [build(form, world.place / form) for form in FORMS]
        self.runtimes = [Runtime(i, self.path, pod, ledger, plugins) for i, pod in enumerate(pods)]
        self.kills = 0

    def run(self, steps: int) -> None:
        """Make ``steps`` steps, ten at a time, and kill the agent meanwhile."""
        numbers, stop = itertools.count(1), threading.Event()
        done = [0]

        def work(runtime: Runtime) -> None:
            while not stop.is_set() and (number := next(numbers)) <= steps:
                runtime.step()
                done[0] = max(done[0], number)

        moments = random.Random(SEED)
        with ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(work, runtime) for runtime in self.runtimes]
            try:
                for first in range(0, steps, STEPS_BETWEEN_KILLS):
                    moment = first + moments.randrange(20, STEPS_BETWEEN_KILLS)
                    if not self._await(lambda moment=moment: done[0] >= moment, futures):
                        break
                    self._kill()
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        for future in futures:
            future.result()

    def _await(self, is_due: Any, futures: list[Future[None]]) -> bool:
        while not is_due():
            if any(future.done() for future in futures):
                return False
            time.sleep(0.001)  # the step of polling
        return True

    def _kill(self) -> None:
        self.agent.process.kill()
        self.agent.process.wait(10)
        self.kills += 1
        self.agent = self.world.agent()
        self.agent.wait_ready()

    def host_links(self) -> list[str]:
        links = self.world.node.ip_json("link", "show", "type", "veth")
        return [link["ifname"] for link in links if link["ifname"].startswith("opod")]

    def host_routes(self) -> list[str]:
        both = [self.world.node.ip_json(v, "route", "show", "proto", "80") for v in ("-4", "-6")]
        return [route["dst"] for routes in both for route in routes]

    def files(self) -> list[str]:
        return [path.name for path in (self.state / "attachments").glob("*.json")]


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stress]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, tmp_path_factory.mktemp("stress"))
        try:
            world.start_etcd()
            world.put("config", CONFIG)
            yield Stress(world, [make() for _ in range(WORKERS)])
        finally:
            world.close()
            for netns in made:
                netns.close()


@pytest.mark.timeout(max(300, STEPS // 4))
def test_nothing_is_given_twice_and_nothing_is_left(stress: Stress) -> None:
    stress.run(STEPS)
    for runtime in stress.runtimes:
        runtime.check_all()
    for runtime in stress.runtimes:
        runtime.collect_all()
    totals: dict[str, int] = {}
    for runtime in stress.runtimes:
        for what, count in runtime.counts.items():
            totals[what] = totals.get(what, 0) + count
    print(f"{STEPS} steps, {stress.kills} kills:", dict(sorted(totals.items())))
    assert stress.kills >= 1
    assert stress.host_links() == []
    assert stress.host_routes() == []
    assert stress.files() == []
    assert "Traceback" not in stress.agent.log


def test_every_address_is_free_afterwards(stress: Stress) -> None:
    """The agent gives all it has to another plugin: none was still in use in its memory."""
    config = {
        "cniVersion": "1.1.0",
        "name": "refill",
        "type": "bridge",
        "ipam": {"type": "overlay"},
    }
    given = set()
    for number in range(COUNT + 1):
        variables = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": "/run/netns/any",
            "CNI_IFNAME": "eth0",
        }
        status, result = ask(stress.path, variables, config, None)
        if number == COUNT:
            assert (status, result["code"]) == (1, FULL)
            assert f"all {COUNT} addresses are in use" in result["msg"]
            break
        assert status == 0, result
        given.add(result["ips"][0]["address"])
    assert len(given) == COUNT
    full = ask(stress.path, {"CNI_COMMAND": "STATUS"}, config, None)
    assert (full[0], full[1]["code"]) == (1, 50)
    assert ask(stress.path, {"CNI_COMMAND": "GC"}, {**config, **ALL_STALE}, None) == (0, None)
    assert ask(stress.path, {"CNI_COMMAND": "STATUS"}, config, None) == (0, None)
    assert stress.files() == []
