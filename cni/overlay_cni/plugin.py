"""The CNI plugin ``overlay``: hands what a runtime asks to the node's agent, and back its answer.

It passes the CNI variables, standard input and open descriptors of the pod's
network namespace over a unix socket, and prints what comes back. It
answers VERSION, and what is wrong with a request, by itself. It must not
allocate, wire or remember anything. docs/cni-protocol.md has the bytes,
limits and times; ``cni/shim/overlay.c`` is the same in C, message by message.

A runtime waits for this program, and most of that wait is the interpreter's
start. So it runs as one file without ``site`` (``python3 -ISE``), compiled when
it is installed (``install.py``), and imports only C modules: ``os``, ``socket``,
``json`` and ``typing`` cost more than all that is done here.
"""

import posix
import sys
from _json import encode_basestring_ascii, make_scanner
from _socket import (
    AF_NETLINK,
    AF_UNIX,
    NETLINK_ROUTE,
    SCM_RIGHTS,
    SHUT_WR,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from fcntl import ioctl
from select import POLLIN, poll
from time import monotonic, sleep

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = VERSIONS[-1]
SOCKET = b"/run/overlay/cni.sock"

# What each command needs, and since when it is there.
NEEDS = {
    b"ADD": (b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME"),
    b"DEL": (b"CNI_CONTAINERID", b"CNI_IFNAME"),
    b"CHECK": (b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME"),
    b"GC": (b"CNI_PATH",),
    b"STATUS": (),
}
SINCE = {b"CHECK": "0.4.0", b"GC": "1.1.0", b"STATUS": "1.1.0"}
PASSED = (
    b"CNI_COMMAND",
    b"CNI_CONTAINERID",
    b"CNI_NETNS",
    b"CNI_IFNAME",
    b"CNI_ARGS",
    b"CNI_PATH",
    b"CNI_NETNS_OVERRIDE",
)

LONGEST_VALUE = 4096  # bytes of one variable
LONGEST_INPUT = 1 << 20  # bytes
LONGEST_ANSWER = 1 << 20  # bytes
LONGEST_NAME = 255  # bytes of the network's name, and of its type
DEEPEST = 128  # objects and arrays within one another

# Seconds: over before a runtime that allows 60 gives up.
ALL_S, STATUS_ALL_S = 55.0, 2.0
CONNECT_S, STATUS_CONNECT_S = 5.0, 1.0
INPUT_S = 10.0
GLANCE_S = 0.1  # for input that would be nice to have
RETRY_S = 0.01

MAGIC = b"OVL1"
# Flags: descriptors that the first byte carries, in this order.
HAS_NETNS, HAS_RTNL, HAS_SYSCTLS = 1, 2, 4

NS_GET_NSTYPE, CLONE_NEWNET = 0xB703, 0x40000000  # linux/nsfs.h, linux/sched.h

_UNSUPPORTED, _BAD_VARIABLE, _IO_FAILURE, _UNDECODABLE, _BAD_CONFIG = 1, 4, 5, 6, 7
_TRY_LATER, _UNAVAILABLE = 11, 50
_FAULT = 999  # libcni's ErrInternal
_ENOENT, _EAGAIN, _ECONNREFUSED = 2, 11, 111  # asm-generic/errno.h

_ALNUM = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_NAMING = 'it begins with a letter or digit and goes on with those, "_", "." and "-"'
_COMMANDS = "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION"
_JSON = "standard input must be one JSON object in UTF-8, at most 128 levels deep"
_AGENT = "see whether overlayd runs on this node; the runtime may ask again"


class CniError(Exception):
    """What is answered in CNI's error form: a code, what is wrong, what to do."""

    def __init__(self, code: int, message: str, details: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Request:
    """What the runtime asks: its variables (empty means absent), its input, and the time left."""

    def __init__(self) -> None:
        environ = posix.environ
        self.values = {name: environ.get(name, b"") for name in PASSED}
        self.command = self.values[b"CNI_COMMAND"]
        self.is_status = self.command == b"STATUS"
        self.input = b""
        self.config: dict[str, object] = {}
        self.config_error: CniError | None = None
        limit = environ.get(b"OVERLAY_CNI_TIMEOUT_MS", b"")
        self._limit_s = int(limit) / 1000 if limit.isdigit() and len(limit) <= 6 else ALL_S
        self.end = monotonic() + min(STATUS_ALL_S if self.is_status else ALL_S, self._limit_s)

    def within(self, seconds: float) -> float:
        """Return the moment by which something that begins now must be done."""
        return min(self.end, monotonic() + min(seconds, self._limit_s))

    def read(self, end: float) -> bool:
        """Read and parse standard input; return whether it ended in time, or was too long."""
        ready = poll()
        ready.register(0, POLLIN)
        ended = False
        while len(self.input) <= LONGEST_INPUT and not ended:
            left = end - monotonic()
            if left <= 0 or not ready.poll(left * 1000):
                break
            part = posix.read(0, LONGEST_INPUT + 1 - len(self.input))
            self.input += part
            ended = not part
        try:
            self.config = _parse(self.input)
        except CniError as exc:
            self.config_error = exc
        return ended or len(self.input) > LONGEST_INPUT

    def version(self) -> str:
        """Return the input's version where one is there, else the latest that is spoken here."""
        try:
            return _text(self.config, "cniVersion", 64) or LATEST
        except CniError:
            return LATEST

    def away(self, code: int, path: bytes, reason: str) -> CniError:
        """Return the error of an agent that gives no answer; STATUS has a code of its own."""
        message = f"the agent on {_shown(path)} {reason}"
        return CniError(_UNAVAILABLE if self.is_status else code, message, _AGENT)


class _Strict:
    """How the scanner reads: JSON alone, and numbers of any length without their cost."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = float

    @staticmethod
    def parse_constant(name: str) -> None:
        """Refuse ``NaN`` and the infinities, which are not JSON."""
        raise ValueError(name)


def main() -> int:
    """Answer one request on standard output and return the exit status."""
    request = Request()
    try:
        status, answer = _answer(request)
    except CniError as exc:
        status, answer = 1, _form(request, exc)
    except Exception as exc:  # noqa: BLE001 - a runtime reads JSON, and no traceback
        what = f"a fault of the plugin: {exc.__class__.__name__}: {exc}"
        status, answer = 1, _form(request, CniError(_FAULT, what, "please report it"))
    return status if _print(answer) else 1


def _form(request: Request, error: CniError) -> bytes:
    """Return what is printed for an error."""
    version = request.version()
    form = (
        f'{{"cniVersion":{_quoted(version if version in VERSIONS else LATEST)}'
        f',"code":{error.code},"msg":{_quoted(error.message)},"details":{_quoted(error.details)}}}\n'
    )
    return form.encode()


def _answer(request: Request) -> tuple[int, bytes]:
    command = _shown(request.command)
    if request.command not in NEEDS:
        try:  # noqa: SIM105 - contextlib costs more than the rest of this command
            request.read(request.within(GLANCE_S))
        except OSError:
            pass
        if command == "VERSION":
            known = ",".join(map(_quoted, VERSIONS))
            form = f'{{"cniVersion":{_quoted(request.version())},"supportedVersions":[{known}]}}\n'
            return 0, form.encode()
        what = f"CNI_COMMAND: unknown command {command}" if command else "CNI_COMMAND is not set"
        raise CniError(_BAD_VARIABLE, what, _COMMANDS)
    try:
        ended = request.read(request.within(INPUT_S))
    except OSError as exc:
        raise CniError(_IO_FAILURE, f"standard input: {exc.strerror}", _JSON) from exc
    _check_variables(request.command, request.values)
    if not ended:
        what = "standard input did not end in time"
        raise CniError(_IO_FAILURE, what, "the runtime closes it after the network configuration")
    path = _check_config(request)
    netns = _open_netns(request)
    return _ask(request, [] if netns is None else [netns, *_open_inside(request, netns)], path)


def _check_variables(command: bytes, values: dict[bytes, bytes]) -> None:
    """Raise CniError for the first variable that is missing or cannot be right."""
    for name, value in values.items():
        if len(value) > LONGEST_VALUE:
            what = f"{name.decode()} is longer than {LONGEST_VALUE} bytes"
            raise CniError(_BAD_VARIABLE, what, "no CNI variable may be longer")
    for name in NEEDS[command]:
        if not values[name]:
            needs = b", ".join(NEEDS[command]).decode()
            what = f"{name.decode()} is not set"
            raise CniError(_BAD_VARIABLE, what, f"{command.decode()} needs {needs}")
    if command in {b"GC", b"STATUS"}:
        return
    container, interface = values[b"CNI_CONTAINERID"], values[b"CNI_IFNAME"]
    if not _is_plain_name(container):
        what = f"CNI_CONTAINERID: {_shown(container)} is not a container id"
        raise CniError(_BAD_VARIABLE, what, _NAMING)
    # "%" is for the kernel a pattern, from which it makes another name.
    odd = interface.translate(None, b"/:% \t\n\v\f\r")
    if len(interface) > 15 or odd != interface or interface in {b".", b".."}:
        what = f"CNI_IFNAME: {_shown(interface)} is not an interface name"
        details = 'it has at most 15 bytes, no "/", ":", "%" or white space, and is not "." or ".."'
        raise CniError(_BAD_VARIABLE, what, details)


def _parse(data: bytes) -> dict[str, object]:
    """Return the object that ``data`` is in JSON; among equal keys the last one counts."""
    if len(data) > LONGEST_INPUT:
        what = f"the network configuration is longer than {LONGEST_INPUT} bytes"
        raise CniError(_UNDECODABLE, what, "the agent takes no longer one")
    if not data:
        raise CniError(_UNDECODABLE, "standard input is empty", _JSON)
    invalid = CniError(_UNDECODABLE, "the network configuration is not valid JSON", _JSON)
    # How deep the scanner goes by itself depends on Python's version.
    if data.count(b"{") + data.count(b"[") > DEEPEST and _is_too_deep(data):
        raise invalid
    try:
        text = data.decode().strip(" \t\n\r")
        value, end = make_scanner(_Strict)(text, 0)  # type: ignore[arg-type] # any object will do
    # What the scanner means to raise is in json.decoder. Python 3.11 does not import it then,
    # but raises SystemError; later ones do.
    except (ValueError, StopIteration, SystemError) as exc:
        raise invalid from exc
    if end != len(text):
        raise invalid
    if not isinstance(value, dict):
        raise CniError(_BAD_CONFIG, "the network configuration is not a JSON object", _JSON)
    return value


def _is_too_deep(data: bytes) -> bool:
    depth, is_string, skip = 0, False, -1
    for at, byte in enumerate(data):
        if is_string:
            if byte == 0x5C and at != skip:  # a backslash
                skip = at + 1
            elif byte == 0x22 and at != skip:
                is_string = False
        elif byte == 0x22:
            is_string, skip = True, -1
        elif byte in b"{[":
            depth += 1
            if depth > DEEPEST:
                return True
        elif byte in b"}]":
            depth -= 1
    return False


def _check_config(request: Request) -> bytes:
    """Return the path of the agent's socket; raise CniError where the config cannot be right."""
    if request.config_error is not None:
        raise request.config_error
    version = _text(request.config, "cniVersion", 64)
    if version not in VERSIONS:
        what = f"cniVersion {version} is" if version else "cniVersion is not set: that means 0.1.0,"
        details = f"this plugin speaks {', '.join(VERSIONS)}"
        raise CniError(_UNSUPPORTED, f"{what} not supported", details)
    since = SINCE.get(request.command, version)
    if VERSIONS.index(version) < VERSIONS.index(since):
        what = f"{request.command.decode()} is not in cniVersion {version}"
        raise CniError(_UNSUPPORTED, what, f"it came with {since}")
    for key in ("name", "type"):
        if not (text := _text(request.config, key, LONGEST_NAME)):
            raise CniError(_BAD_CONFIG, f'"{key}" is not set', "every network configuration has it")
        if key == "name" and not _is_plain_name(text.encode()):
            raise CniError(_BAD_CONFIG, '"name" is not a network name', _NAMING)
    path = _text(request.config, "socket", 107).encode()
    if path and not path.startswith(b"/"):
        what = '"socket" is not an absolute path'
        raise CniError(_BAD_CONFIG, what, "it names the unix socket of the node's agent")
    return path or SOCKET


def _text(config: dict[str, object], key: str, longest: int) -> str:
    """Return a string of the configuration, empty where it is absent or null."""
    value = config.get(key)
    if value is None:
        return ""
    if isinstance(value, str) and "\0" not in value:
        try:
            if len(value.encode()) <= longest:
                return value
        except UnicodeEncodeError:
            pass
    what = f'"{key}" is not a string of at most {longest} bytes'
    raise CniError(_BAD_CONFIG, what, "nor may it hold a null character or half a surrogate pair")


def _is_plain_name(name: bytes) -> bool:
    return name[:1].isalnum() and not name.translate(None, _ALNUM + b"_.-")


def _open_netns(request: Request) -> int | None:
    """Return a descriptor of the pod's namespace, or None where the command does without.

    Raises CniError for ADD and CHECK where the path leads to no network
    namespace, or to the one that this process is in. DEL must work without.
    """
    path = request.values[b"CNI_NETNS"]
    if not path or request.command not in {b"ADD", b"DEL", b"CHECK"}:
        return None
    reason = ""
    try:
        # Without O_NONBLOCK a path that is a FIFO would hang.
        flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY
        netns = posix.open(path, flags)
        theirs, own = posix.fstat(netns), posix.stat("/proc/self/ns/net")
        # All namespaces are on one file system, and nothing else is (fs/nsfs.c).
        if theirs.st_dev != own.st_dev or ioctl(netns, NS_GET_NSTYPE) != CLONE_NEWNET:
            reason = " is not a network namespace"
        elif theirs.st_ino == own.st_ino:
            reason = " is the host's own network namespace"
    except OSError as exc:
        reason = f": {exc.strerror}"
    if not reason:
        return netns
    if request.command == b"DEL":
        return None
    what = f"CNI_NETNS: {_shown(path)}{reason}"
    raise CniError(_BAD_VARIABLE, what, "it must be the path of the pod's network namespace")


def _open_inside(request: Request, netns: int) -> list[int]:
    """Return a netlink socket and the sysctls of the namespace; fewer where that fails.

    An agent in a container may not enter by itself. This process stays inside:
    the agent's socket is a path, the same from every namespace.
    """
    found: list[int] = []
    if request.command == b"DEL":
        return found
    try:
        _set_namespace(netns)
        found.append(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE).detach())
        flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
        found.append(posix.open("/proc/sys/net/ipv6/conf", flags))
    except (ImportError, OSError):
        pass  # the agent enters by itself, or says why it cannot
    return found


def _set_namespace(netns: int) -> None:
    """Enter a network namespace. Raises OSError, or ImportError where Python has no way."""
    enter = getattr(posix, "setns", None)  # since Python 3.12
    if enter is not None:
        enter(netns, CLONE_NEWNET)
        return
    # The package ctypes costs 3.5 ms to import, and this 0.4 (November 2026).
    import _ctypes

    whole = _ctypes.dlopen(None, 2)  # type: ignore[arg-type] # dlopen(3) has it so
    address = _ctypes.dlsym(whole, "setns")
    if _ctypes.call_function(address, (netns, CLONE_NEWNET)) != 0:
        raise OSError


def _ask(request: Request, descriptors: list[int], path: bytes) -> tuple[int, bytes]:
    """Return the exit status and the output that the agent gives.

    Raises CniError where no whole answer comes. A request is sent once: one
    that was cut off may have been carried out.
    """
    agent = _connect(request, path)
    values = request.values.items()
    variables = b"".join(b"%b=%b\0" % (name, value) for name, value in values if value)
    flags = sum((HAS_NETNS, HAS_RTNL, HAS_SYSCTLS)[: len(descriptors)])
    data = MAGIC + _u32(flags) + _u32(len(variables)) + _u32(len(request.input))
    data += variables + request.input
    numbers = b"".join([number.to_bytes(4, sys.byteorder) for number in descriptors])
    rights = [(SOL_SOCKET, SCM_RIGHTS, numbers)] if numbers else []
    try:
        try:
            agent.settimeout(_left_s(request.end))
            sent = agent.sendmsg([data], rights)
            while sent < len(data):
                agent.settimeout(_left_s(request.end))
                sent += agent.send(memoryview(data)[sent : sent + 65536])
            agent.shutdown(SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # an agent that refuses early may have said why
        header = _receive(agent, 12, request.end)
        status = int.from_bytes(header[4:8], "little")
        length = int.from_bytes(header[8:12], "little")
        if MAGIC.startswith(header[:4]) and len(header) < 12:
            raise request.away(_TRY_LATER, path, "closed the connection without an answer")
        if header[:4] != MAGIC or status > 1 or length > LONGEST_ANSWER:
            raise request.away(_IO_FAILURE, path, "does not speak version 1 of this protocol")
        answer = _receive(agent, length, request.end)
    except TimeoutError as exc:
        raise request.away(_TRY_LATER, path, "did not answer in time") from exc
    except OSError as exc:
        raise request.away(_TRY_LATER, path, f"went away: {exc.strerror}") from exc
    if len(answer) < length:
        raise request.away(_TRY_LATER, path, "closed the connection in the middle of its answer")
    return status, answer


def _connect(request: Request, path: bytes) -> socket:
    """Return a connection to the agent, after a wait for one that is being restarted."""
    end = request.within(STATUS_CONNECT_S if request.is_status else CONNECT_S)
    try:
        agent = socket(AF_UNIX, SOCK_STREAM)
    except OSError as exc:
        reason = f"cannot be reached: {exc.strerror}"
        raise request.away(_IO_FAILURE, path, reason) from exc
    # With a time limit a full queue is told (EAGAIN) and not waited for without end.
    agent.settimeout(1.0)
    while True:
        try:
            agent.connect(path)
        except OSError as exc:
            reason = f"cannot be reached: {exc.strerror}"
            if exc.errno not in {_ENOENT, _ECONNREFUSED, _EAGAIN}:
                raise request.away(_IO_FAILURE, path, reason) from exc
            if monotonic() >= end:
                raise request.away(_TRY_LATER, path, reason) from exc
            sleep(RETRY_S)
        else:
            return agent


def _receive(agent: socket, length: int, end: float) -> bytes:
    """Return ``length`` bytes, or fewer where the connection ends before."""
    data = b""
    while len(data) < length:
        agent.settimeout(_left_s(end))
        try:
            part = agent.recv(length - len(data))
        except ConnectionResetError:
            break
        if not part:
            break
        data += part
    return data


def _left_s(end: float) -> float:
    """Return the time left in seconds; raise TimeoutError when there is none."""
    left = end - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _shown(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _quoted(text: str) -> str:
    return encode_basestring_ascii(text)


def _print(answer: bytes) -> bool:
    """Write to standard output; return whether somebody takes it."""
    try:
        while answer:
            answer = answer[posix.write(1, answer) :]
    except OSError:
        return False
    return True


if __name__ == "__main__":
    # Nothing is left to be tidied up, and the interpreter would take its time for it.
    posix._exit(main())  # noqa: SLF001 - its public name is in os
