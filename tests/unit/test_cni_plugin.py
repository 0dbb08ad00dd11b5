"""The CNI plugin in every form, executed as a runtime does, before an agent on a real socket."""

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kernel.netns import Netns
from tests.unit.cni_agent import ANSWER, MAGIC, FakeAgent, answer, receive
from tests.unit.cni_plugins import FORMS, Outcome, Plugin, build

VERSIONS: Final = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
COMMANDS: Final = ("ADD", "DEL", "CHECK", "GC", "STATUS")
CONTAINER: Final = "4d6f0a"
MIB: Final = 1 << 20  # bytes


@pytest.fixture(scope="session", params=FORMS)
def plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    return build(request.param, tmp_path_factory.mktemp("cni"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a path so short that a socket fits below it."""
    with tempfile.TemporaryDirectory(prefix="ovt-") as name:
        yield Path(name)


@pytest.fixture
def agent(folder: Path) -> Iterator[FakeAgent]:
    with FakeAgent(folder / "cni.sock") as started:
        yield started


@pytest.fixture(scope="module")
def pod() -> Iterator[Path]:
    """Return the path of a network namespace that is not the test's own."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
    netns = Netns()
    yield netns.path
    netns.close()


def config(path: Path | None = None, **keys: Any) -> bytes:
    """Return a network configuration; a key that is None is left out."""
    whole = {"cniVersion": "1.1.0", "name": "pods", "type": "overlay"}
    whole |= {"socket": None if path is None else str(path)} | keys
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def variables(command: str, netns: Path | str = "", **more: str | bytes) -> dict[str, str | bytes]:
    """Return what a runtime sets; without ``netns`` such as it is for DEL, GC and STATUS."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "",
        "CNI_PATH": "/opt/cni/bin",
        **more,
    }


def quick(outcome: Outcome, limit_s: float) -> Outcome:
    assert outcome.took_s < limit_s
    return outcome


# What goes there and comes back.


def test_request_is_the_documented_bytes_and_the_namespace(
    plugin: Plugin, agent: FakeAgent, pod: Path
) -> None:
    stdin = config(agent.path)
    plugin.run(variables("ADD", pod, CNI_ARGS="K8S_POD_NAME=a;IP=192.0.2.1", HOME="/root"), stdin)
    environment = (
        b"CNI_COMMAND=ADD\0CNI_CONTAINERID=4d6f0a\0CNI_NETNS=" + os.fsencode(pod) + b"\0"
        b"CNI_IFNAME=eth0\0CNI_ARGS=K8S_POD_NAME=a;IP=192.0.2.1\0CNI_PATH=/opt/cni/bin\0"
    )
    (received,) = agent.received
    assert received.data == (
        struct.pack("<4sIII", b"OVL1", 7, len(environment), len(stdin)) + environment + stdin
    )
    assert received.netns == pod.stat().st_ino != Path("/proc/self/ns/net").stat().st_ino


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gets_the_agents_answer(
    plugin: Plugin, agent: FakeAgent, pod: Path, command: str
) -> None:
    outcome = plugin.run(variables(command, pod), config(agent.path))
    assert (outcome.status, outcome.output) == (0, b"{}\n")
    (received,) = agent.received
    assert received.variables["CNI_COMMAND"] == command.encode()
    assert (received.netns is None) == (command in {"GC", "STATUS"})


@pytest.mark.parametrize(
    "output",
    [b"", b'{"ips":[]}', b"\0\xff\n\n", b" " * MIB],
    ids=["nothing", "json", "any bytes", "1 MiB"],
)
@pytest.mark.parametrize("status", [0, 1])
def test_answer_is_printed_byte_by_byte(
    plugin: Plugin, folder: Path, output: bytes, status: int
) -> None:
    def serve(client: socket.socket) -> None:
        receive(client)
        client.sendall(answer(output, status))

    with FakeAgent(folder / "a", serve=serve) as agent:
        outcome = plugin.run(variables("DEL"), config(agent.path))
    assert (outcome.status, outcome.output) == (status, output)


def test_longest_input_arrives_whole(plugin: Plugin, agent: FakeAgent) -> None:
    stdin = config(agent.path).ljust(MIB)
    assert plugin.run(variables("DEL"), stdin).status == 0
    assert agent.received[0].input == stdin


def test_empty_variables_are_absent_and_odd_bytes_pass(plugin: Plugin, agent: FakeAgent) -> None:
    plugin.run(variables("DEL", CNI_ARGS=b"A=\xff\n", CNI_PATH=""), config(agent.path))
    assert agent.received[0].variables == {
        "CNI_COMMAND": b"DEL",
        "CNI_CONTAINERID": b"4d6f0a",
        "CNI_IFNAME": b"eth0",
        "CNI_ARGS": b"A=\xff\n",
    }


def test_answer_in_single_bytes_is_put_together(plugin: Plugin, folder: Path) -> None:
    def serve(client: socket.socket) -> None:
        receive(client)
        for byte in answer(b'{"cniVersion":"1.0.0"}\n'):
            client.sendall(bytes([byte]))

    with FakeAgent(folder / "a", serve=serve) as agent:
        outcome = plugin.run(variables("DEL"), config(agent.path))
    assert outcome.output == b'{"cniVersion":"1.0.0"}\n'


def test_nobody_reads_the_output(plugin: Plugin, agent: FakeAgent) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [plugin.path],
            env=variables("DEL"),
            input=config(agent.path),
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


# VERSION.


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b' {"cniVersion" : "9.9.9" , "a": [1.5e3, {"cniVersion": "0.1.0"}]}\n', "9.9.9"),
        (b'{"cniVersion":"1.0.0","cniVersion":"0.3.1"}', "0.3.1"),
        (b'{"cniVersion":"0.3.1","cniVersion":null}', "1.1.0"),
        (b'{"cni\\u0056ersion":"1.\\u0030.0"}', "1.0.0"),
        ('{"cniVersion":"\\ud83d\\ude00\u20ac\\"\\n\x7f"}'.encode(), '\U0001f600\u20ac"\n\x7f'),
        (b'{"cniVersion":"\\ud83d"}', "1.1.0"),
        (b'{"cniVersion":"1.0.0"', "1.1.0"),
        (b'{"cniVersion":"1.0.0","a":NaN}', "1.1.0"),
        (b'{"cniVersion":"1.0.0","a":"\xed\xa0\x80"}', "1.1.0"),
        (b'{"cniVersion":5}', "1.1.0"),
        (b'{"cniVersion":"' + b"1" * 65 + b'"}', "1.1.0"),
        (b"[" * 100_000, "1.1.0"),
        (b'{"cniVersion":"1.0.0","a":' + b"[" * 127 + b"]" * 127 + b"}", "1.0.0"),
        (b'{"cniVersion":"1.0.0","a":' + b"[" * 128 + b"]" * 128 + b"}", "1.1.0"),
        (b'{"cniVersion":"1.0.0","a":"' + b"[" * 300 + b'\\"{"}', "1.0.0"),
        (b'{"cniVersion":"1.0.0","a":[' + b"[]," * 300 + b"0]}", "1.0.0"),
        (b'{"cniVersion":"1.0.0","a":' + b"9" * 5000 + b"}", "1.0.0"),
        (b"", "1.1.0"),
        (b'"cniVersion"', "1.1.0"),
        (b'{"cniVersion":"1.0.0"}' + b" " * 10 * MIB, "1.1.0"),
    ],
    ids=range(21),
)
def test_version_echoes_what_the_input_says(plugin: Plugin, stdin: bytes, version: str) -> None:
    outcome = quick(plugin.run({"CNI_COMMAND": "VERSION"}, stdin), 5)
    assert outcome.status == 0
    assert outcome.document == {"cniVersion": version, "supportedVersions": VERSIONS}


def test_version_never_asks_the_agent(plugin: Plugin, agent: FakeAgent) -> None:
    assert plugin.run(variables("VERSION"), config(agent.path)).status == 0
    assert agent.clients == 0


@pytest.mark.parametrize("command", ["VERSION", "", "add"])
def test_end_of_input_is_not_waited_for(plugin: Plugin, command: str) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b'{"cniVersion":"0.4.0"}')
        outcome = quick(plugin.run({"CNI_COMMAND": command}, reading), 2)
    finally:
        os.close(reading)
        os.close(writing)
    assert outcome.document["cniVersion"] == "0.4.0"


def test_version_without_any_standard_input(plugin: Plugin) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" <&-', plugin.path],
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"


# What is wrong with a request.

_ID: Final = "is not a container id"
_DEVICE: Final = "is not an interface name"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CNI_COMMAND": ""}, "CNI_COMMAND is not set"),
        ({"CNI_COMMAND": "add"}, "CNI_COMMAND: unknown command add"),
        ({"CNI_COMMAND": "ADD "}, "CNI_COMMAND: unknown command ADD "),
        ({"CNI_COMMAND": b"\xe2\x82"}, "CNI_COMMAND: unknown command \\xe2\\x82"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID is not set"),
        ({"CNI_NETNS": ""}, "CNI_NETNS is not set"),
        ({"CNI_COMMAND": "CHECK", "CNI_NETNS": ""}, "CNI_NETNS is not set"),
        ({"CNI_IFNAME": ""}, "CNI_IFNAME is not set"),
        ({"CNI_COMMAND": "DEL", "CNI_CONTAINERID": ""}, "CNI_CONTAINERID is not set"),
        ({"CNI_COMMAND": "DEL", "CNI_IFNAME": ""}, "CNI_IFNAME is not set"),
        ({"CNI_COMMAND": "GC", "CNI_PATH": ""}, "CNI_PATH is not set"),
        ({"CNI_CONTAINERID": "a\n"}, f"CNI_CONTAINERID: a\n {_ID}"),
        ({"CNI_CONTAINERID": "../a"}, f"CNI_CONTAINERID: ../a {_ID}"),
        ({"CNI_CONTAINERID": "-a"}, f"CNI_CONTAINERID: -a {_ID}"),
        ({"CNI_CONTAINERID": "a/b"}, f"CNI_CONTAINERID: a/b {_ID}"),
        ({"CNI_CONTAINERID": "\u00e9"}, f"CNI_CONTAINERID: \u00e9 {_ID}"),
        ({"CNI_CONTAINERID": b"a\xff\x01"}, f"CNI_CONTAINERID: a\\xff\x01 {_ID}"),
        ({"CNI_CONTAINERID": "a" * 4097}, "CNI_CONTAINERID is longer than 4096 bytes"),
        ({"CNI_ARGS": "a" * 4097}, "CNI_ARGS is longer than 4096 bytes"),
        ({"CNI_IFNAME": "a" * 16}, f"CNI_IFNAME: {'a' * 16} {_DEVICE}"),
        ({"CNI_IFNAME": "\u00e9" * 8}, f"CNI_IFNAME: {chr(0xE9) * 8} {_DEVICE}"),
        ({"CNI_IFNAME": "."}, f"CNI_IFNAME: . {_DEVICE}"),
        ({"CNI_IFNAME": ".."}, f"CNI_IFNAME: .. {_DEVICE}"),
        ({"CNI_IFNAME": "a/b"}, f"CNI_IFNAME: a/b {_DEVICE}"),
        ({"CNI_IFNAME": "a:b"}, f"CNI_IFNAME: a:b {_DEVICE}"),
        ({"CNI_IFNAME": "eth%d"}, f"CNI_IFNAME: eth%d {_DEVICE}"),
        ({"CNI_IFNAME": "eth0\n"}, f"CNI_IFNAME: eth0\n {_DEVICE}"),
        ({"CNI_IFNAME": "a b"}, f"CNI_IFNAME: a b {_DEVICE}"),
    ],
)
def test_bad_variable_is_named(
    plugin: Plugin, agent: FakeAgent, changes: dict[str, str | bytes], message: str
) -> None:
    given = variables("ADD", "/proc/1/ns/no") | changes
    outcome = plugin.run(given, config(agent.path, cniVersion="0.4.0"))
    assert outcome.error() == (4, message)
    assert outcome.document["cniVersion"] == "0.4.0"
    assert agent.clients == 0


@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        (b"", (6, "standard input is empty")),
        (b"{", (6, "the network configuration is not valid JSON")),
        (b'{"a":1}x', (6, "the network configuration is not valid JSON")),
        (b"{'a':1}", (6, "the network configuration is not valid JSON")),
        (b'{"a":1,}', (6, "the network configuration is not valid JSON")),
        (b'\xef\xbb\xbf{"a":1}', (6, "the network configuration is not valid JSON")),
        (b'{"a":"\xff"}', (6, "the network configuration is not valid JSON")),
        (b"[" * 100_000, (6, "the network configuration is not valid JSON")),
        (b" " * 10 * MIB, (6, "the network configuration is longer than 1048576 bytes")),
        (b"[]", (7, "the network configuration is not a JSON object")),
        (b"null", (7, "the network configuration is not a JSON object")),
        (config(name=None), (7, '"name" is not set')),
        (config(name=""), (7, '"name" is not set')),
        (config(name="../a"), (7, '"name" is not a network name')),
        (config(name="a\n"), (7, '"name" is not a network name')),
        (config(name=7), (7, '"name" is not a string of at most 255 bytes')),
        (config(name="a" * 256), (7, '"name" is not a string of at most 255 bytes')),
        (config(name="a\0"), (7, '"name" is not a string of at most 255 bytes')),
        (config(name="a\ud800"), (7, '"name" is not a string of at most 255 bytes')),
        (config(type=None), (7, '"type" is not set')),
        (config(type=["overlay"]), (7, '"type" is not a string of at most 255 bytes')),
        (config(socket="run/cni.sock"), (7, '"socket" is not an absolute path')),
        (config(socket={}), (7, '"socket" is not a string of at most 107 bytes')),
        (config(socket="/" * 108), (7, '"socket" is not a string of at most 107 bytes')),
        (config(cniVersion=1), (7, '"cniVersion" is not a string of at most 64 bytes')),
        (config(cniVersion="1" * 65), (7, '"cniVersion" is not a string of at most 64 bytes')),
        (config(cniVersion="1.2.0"), (1, "cniVersion 1.2.0 is not supported")),
        (config(cniVersion="0.2.0"), (1, "cniVersion 0.2.0 is not supported")),
        (config(cniVersion="1.0.0\n"), (1, "cniVersion 1.0.0\n is not supported")),
        (config(cniVersion=None), (1, "cniVersion is not set: that means 0.1.0, not supported")),
    ],
    ids=range(30),
)
def test_bad_input_is_named(plugin: Plugin, stdin: bytes, error: tuple[int, str]) -> None:
    outcome = quick(plugin.run(variables("ADD", "/proc/1/ns/no"), stdin), 5)
    assert outcome.error() == error
    assert outcome.document["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    ("command", "first"), [("ADD", 0), ("DEL", 0), ("CHECK", 2), ("GC", 4), ("STATUS", 4)]
)
def test_command_is_refused_before_the_version_that_brought_it(
    plugin: Plugin, agent: FakeAgent, pod: Path, command: str, first: int
) -> None:
    for index, version in enumerate(VERSIONS):
        outcome = plugin.run(variables(command, pod), config(agent.path, cniVersion=version))
        if index >= first:
            assert outcome.status == 0
            continue
        assert outcome.error() == (1, f"{command} is not in cniVersion {version}")
        assert outcome.document["cniVersion"] == version
    assert len(agent.received) == len(VERSIONS) - first


def test_input_that_does_not_end(plugin: Plugin, agent: FakeAgent) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, config(agent.path, cniVersion="0.4.0"))
        outcome = quick(plugin.run(variables("DEL"), reading, timeout_ms=200), 2)
    finally:
        os.close(reading)
        os.close(writing)
    assert outcome.error() == (5, "standard input did not end in time")
    assert outcome.document["cniVersion"] == "0.4.0"
    assert agent.clients == 0


def test_input_that_cannot_be_read(plugin: Plugin) -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    outcome = plugin.run(variables("DEL"), descriptor)
    os.close(descriptor)
    assert outcome.error() == (5, "standard input: Bad file descriptor")


# The namespace.


def _netns_paths(folder: Path) -> dict[str, str]:
    (folder / "file").write_text("net:[4026531840]")
    (folder / "net:[1]").write_text("")
    (folder / "own").symlink_to("/proc/self/ns/net")
    os.mkfifo(folder / "fifo")
    strange = "is not a network namespace"
    return {
        f"{folder}/none": ": No such file or directory",
        f"{folder}/file/x": ": Not a directory",
        f"{folder}/file": f" {strange}",
        f"{folder}/net:[1]": f" {strange}",
        f"{folder}/fifo": f" {strange}",
        f"{folder}": f" {strange}",
        "/dev/null": f" {strange}",
        "/proc/self/ns/mnt": f" {strange}",
        "/proc/self/ns/net": " is the host's own network namespace",
        f"{folder}/own": " is the host's own network namespace",
    }


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_path_that_is_no_pods_namespace_is_refused(
    plugin: Plugin, agent: FakeAgent, folder: Path, command: str
) -> None:
    for path, reason in _netns_paths(folder).items():
        outcome = quick(plugin.run(variables(command, path), config(agent.path)), 5)
        assert outcome.error() == (4, f"CNI_NETNS: {path}{reason}")
    assert agent.clients == 0


def test_del_goes_on_without_the_namespace(plugin: Plugin, agent: FakeAgent, folder: Path) -> None:
    paths = [*_netns_paths(folder), ""]
    for path in paths:
        assert plugin.run(variables("DEL", path), config(agent.path)).status == 0
    assert [received.netns for received in agent.received] == [None] * len(paths)
    assert agent.received[0].variables["CNI_NETNS"].decode() == paths[0]


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_socket_and_sysctls_of_the_namespace_come_along_where_they_are_needed(
    plugin: Plugin, agent: FakeAgent, command: str
) -> None:
    with contextlib.closing(Netns()) as netns:
        netns.ip("link", "add", "only-here", "type", "bridge")
        plugin.run(variables(command, netns.path), config(agent.path))
        inode = netns.path.stat().st_ino
    (received,) = agent.received
    assert received.netns == inode
    assert received.socket_in == (None if command == "DEL" else inode)
    assert ("only-here" in received.sysctls) == (command != "DEL")


def test_plugin_that_may_not_enter_hands_over_the_namespace_alone(
    plugin: Plugin, agent: FakeAgent, pod: Path
) -> None:
    bounded = ["setpriv", "--bounding-set=-sys_admin", str(plugin.path)]
    done = subprocess.run(
        bounded,
        env=variables("ADD", pod),
        input=config(agent.path),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{}\n", b"")
    (received,) = agent.received
    assert (received.netns, received.socket_in) == (pod.stat().st_ino, None)


def test_namespace_is_found_by_link_and_by_descriptor(
    plugin: Plugin, agent: FakeAgent, folder: Path, pod: Path
) -> None:
    (folder / "link").symlink_to(pod)
    descriptor = os.open(pod, os.O_RDONLY)
    for path in (folder / "link", f"/proc/{os.getpid()}/fd/{descriptor}"):
        assert plugin.run(variables("ADD", path), config(agent.path)).status == 0
    os.close(descriptor)
    assert [received.netns for received in agent.received] == [pod.stat().st_ino] * 2


# An agent that is away, or not itself.


def code_of_absence(command: str, code: int = 11) -> int:
    return 50 if command == "STATUS" else code


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_is_away(plugin: Plugin, folder: Path, pod: Path, command: str) -> None:
    path = folder / "cni.sock"
    outcome = plugin.run(variables(command, pod), config(path), timeout_ms=200)
    message = f"the agent on {path} cannot be reached: No such file or directory"
    assert quick(outcome, 2).error() == (code_of_absence(command), message)
    assert outcome.took_s >= 0.2


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("stale", 11, "Connection refused"),
        ("file", 11, "Connection refused"),
        ("folder/none/cni.sock", 11, "No such file or directory"),
        ("file/cni.sock", 5, "Not a directory"),
        ("datagrams", 5, "Protocol wrong type for socket"),
    ],
)
@pytest.mark.parametrize("command", ["DEL", "STATUS"])
def test_socket_without_an_agent(
    plugin: Plugin, folder: Path, command: str, path: str, code: int, reason: str
) -> None:
    (folder / "file").touch()
    with ExitStack() as stack:
        for name, kind in (("stale", socket.SOCK_STREAM), ("datagrams", socket.SOCK_DGRAM)):
            made = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            made.bind(str(folder / name))
        outcome = plugin.run(variables(command), config(folder / path), timeout_ms=100)
    message = f"the agent on {folder / path} cannot be reached: {reason}"
    assert outcome.error() == (code_of_absence(command, code), message)


@pytest.mark.parametrize("command", ["DEL", "STATUS"])
@pytest.mark.parametrize("leftover", [False, True], ids=["socket gone", "socket stale"])
def test_agent_that_restarts_is_waited_for(
    plugin: Plugin, folder: Path, command: str, *, leftover: bool
) -> None:
    path = folder / "cni.sock"
    if leftover:
        FakeAgent(path).close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
            gone.bind(str(path))
    agents: list[FakeAgent] = []

    def start() -> None:
        path.unlink(missing_ok=True)
        agents.append(FakeAgent(path))

    timer = threading.Timer(0.3, start)
    timer.start()
    outcome = plugin.run(variables(command), config(path))
    timer.join()
    agents[0].close()
    assert (outcome.status, len(agents[0].received)) == (0, 1)
    assert outcome.took_s >= 0.25


def test_default_wait_for_an_agent_is_bounded(plugin: Plugin, folder: Path) -> None:
    if plugin.form == "sanitized":
        pytest.skip("the same program as the shim, and five seconds")
    outcome = plugin.run(variables("DEL"), config(folder / "cni.sock"))
    assert outcome.error()[0] == 11
    assert 4.9 < outcome.took_s < 8


def test_status_is_answered_within_two_seconds(plugin: Plugin, folder: Path) -> None:
    with FakeAgent(folder / "cni.sock") as agent:
        agent._serve = agent.stay_silent
        outcome = plugin.run(variables("STATUS"), config(agent.path))
    message = f"the agent on {agent.path} did not answer in time"
    assert quick(outcome, 3).error() == (50, message)


@pytest.mark.parametrize("command", ["DEL", "STATUS"])
def test_agent_that_says_nothing(plugin: Plugin, folder: Path, command: str) -> None:
    with FakeAgent(folder / "cni.sock") as agent:
        agent._serve = agent.stay_silent
        # More than a socket's buffers take, so that sending stops as well.
        for stdin in (config(agent.path), config(agent.path).ljust(MIB)):
            outcome = plugin.run(variables(command), stdin, timeout_ms=200)
            message = f"the agent on {agent.path} did not answer in time"
            assert quick(outcome, 2).error() == (code_of_absence(command), message)


def test_agent_that_never_gets_to_the_end(plugin: Plugin, folder: Path) -> None:
    stop = threading.Event()

    def serve(client: socket.socket) -> None:
        receive(client)
        client.sendall(ANSWER.pack(MAGIC, 0, 1000))
        while not stop.wait(0.01):
            client.sendall(b" ")

    with FakeAgent(folder / "a", serve=serve) as agent:
        outcome = plugin.run(variables("DEL"), config(agent.path), timeout_ms=300)
        stop.set()
    assert quick(outcome, 2).error() == (11, f"the agent on {agent.path} did not answer in time")


def test_agent_whose_queue_is_full(plugin: Plugin, folder: Path) -> None:
    path = folder / "cni.sock"
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        busy.bind(str(path))
        busy.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting.connect(str(path))
        outcome = plugin.run(variables("DEL"), config(path), timeout_ms=200)
    assert quick(outcome, 2).error()[0] == 11


_SILENT: Final = "closed the connection without an answer"
_CUT: Final = "closed the connection in the middle of its answer"
_FOREIGN: Final = "does not speak version 1 of this protocol"


@pytest.mark.parametrize(
    ("reply", "code", "reason"),
    [
        (b"", 11, _SILENT),
        (b"OV", 11, _SILENT),
        (answer(b"{}")[:11], 11, _SILENT),
        (answer(b"{}")[:12], 11, _CUT),
        (answer(b"{}")[:13], 11, _CUT),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 5, _FOREIGN),
        (b'{"overlay": 1, "ok": false}\n', 5, _FOREIGN),
        (b"no\n", 5, _FOREIGN),
        (b"OVL2" + answer(b"{}")[4:], 5, _FOREIGN),
        (answer(b"{}", 2), 5, _FOREIGN),
        (ANSWER.pack(MAGIC, 0, MIB + 1), 5, _FOREIGN),
        (ANSWER.pack(MAGIC, 0xFFFFFFFF, 0xFFFFFFFF), 5, _FOREIGN),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("command", ["DEL", "STATUS"])
def test_answer_that_is_none(
    plugin: Plugin, folder: Path, command: str, reply: bytes, code: int, reason: str
) -> None:
    def serve(client: socket.socket) -> None:
        receive(client)
        client.sendall(reply)

    with FakeAgent(folder / "a", serve=serve) as agent:
        outcome = plugin.run(variables(command), config(agent.path))
    message = f"the agent on {agent.path} {reason}"
    assert outcome.error() == (code_of_absence(command, code), message)


def test_agent_that_hangs_up_unread(plugin: Plugin, folder: Path) -> None:
    with FakeAgent(folder / "a", serve=lambda _client: None) as agent:
        for stdin in (config(agent.path), config(agent.path).ljust(MIB)):
            outcome = plugin.run(variables("DEL"), stdin)
            assert outcome.error() == (11, f"the agent on {agent.path} {_SILENT}")


def test_refusal_of_an_agent_that_reads_no_further_is_heard(plugin: Plugin, folder: Path) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(16)
        client.sendall(answer(b'{"code":7}\n', 1))

    with FakeAgent(folder / "a", serve=serve) as agent:
        outcome = plugin.run(variables("DEL"), config(agent.path).ljust(MIB))
    assert (outcome.status, outcome.output) == (1, b'{"code":7}\n')


def test_default_socket_is_in_the_message(plugin: Plugin) -> None:
    if Path("/run/overlay/cni.sock").exists():
        pytest.skip("an agent runs here")
    # Enough for the input to come, on a machine that is busy.
    outcome = plugin.run(variables("DEL"), config(), timeout_ms=500)
    assert outcome.error()[1].startswith("the agent on /run/overlay/cni.sock cannot be reached: ")


def test_many_at_a_time_all_get_their_own_answer(plugin: Plugin, folder: Path) -> None:
    def serve(client: socket.socket) -> None:
        client.sendall(answer(receive(client).variables["CNI_CONTAINERID"]))

    with FakeAgent(folder / "a", serve=serve) as agent:
        started = [
            subprocess.Popen(
                [plugin.path],
                env=variables("DEL", CNI_CONTAINERID=f"c{number}"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for number in range(20)
        ]
        outputs = [process.communicate(config(agent.path), 30)[0] for process in started]
    assert outputs == [b"c%d" % number for number in range(20)]


# EMFILE in the words of glibc and of musl, which the plugin in C may be linked to.
_NO_DESCRIPTOR = ("Too many open files", "No file descriptors available")


def test_no_descriptor_is_left_for_the_socket(plugin: Plugin, folder: Path, pod: Path) -> None:
    """There is room for one more, and the namespace takes it."""
    if plugin.form == "sanitized":
        pytest.skip("the sanitizer needs descriptors of its own")
    config = {"cniVersion": "1.1.0", "name": "n", "type": "overlay", "socket": str(folder / "s")}
    variables = {"CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": str(pod)}
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 4; exec "$0"', str(plugin.path)],
        env={"CNI_COMMAND": "ADD", **variables},
        input=json.dumps(config).encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == b""
    document = json.loads(done.stdout)
    assert (done.returncode, document["code"], document["cniVersion"]) == (1, 5, "1.1.0")
    reason = document["msg"].partition("cannot be reached: ")[2]
    assert reason in _NO_DESCRIPTOR
