"""The forms of the CNI plugin are one program: fuzzed against Python's JSON and each other."""

import importlib.util
import json
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay_cni import plugin as module
from overlay_cni.install import install_plugin, install_shim, main, own_interpreter, shebang
from tests.unit.cni_plugins import FORMS, Plugin, build

LATEST = "1.1.0"


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plugin]:
    return {form: build(form, tmp_path_factory.mktemp("cni")) for form in FORMS}


# JSON, whole and broken.

_PIECES = st.sampled_from(
    ["1.0.0", "\\u0031.0.0", "\\ud83d\\ude00", "\\ud83d", "\\udc00", "\\u0000", "\\n", "\\x", "\\"]
)
_STRINGS = st.lists(st.one_of(_PIECES, st.text(max_size=4)), max_size=3).map(
    lambda parts: '"' + "".join(parts) + '"'
)
_KEYS = st.sampled_from(
    ['"cniVersion"', '"cni\\u0056ersion"', '"name"', '"type"', '"socket"', '"cniVersio"', '""']
)
_NUMBERS = st.sampled_from(
    ["0", "-0", "01", "1.5", "1.", ".5", "-", "1e5", "1E+5", "1e", "-1e-5", "9" * 30, "+1", "0x1"]
)
_WORDS = st.sampled_from(["null", "true", "false", "NaN", "Infinity", "-Infinity", "nul", "None"])
_SPACES = st.sampled_from(["", "", "", " ", "\n", "\t\r", "\v", "\u00a0", "\0"])
_SPECIAL = st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\xff", b"\xed\xa0"])


def _array(values: list[str]) -> str:
    return f"[{','.join(values)}]"


def _object(pairs: list[tuple[str, str, str]]) -> str:
    return "{" + ",".join(f"{space}{key}{space}:{value}" for key, value, space in pairs) + "}"


def _containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.one_of(_KEYS, _STRINGS)
    objects = st.lists(st.tuples(keys, values, _SPACES), max_size=4).map(_object)
    return st.one_of(st.lists(values, max_size=3).map(_array), objects)


_VALUES = st.recursive(st.one_of(_STRINGS, _STRINGS, _NUMBERS, _WORDS), _containers, max_leaves=8)
_VERSIONS = st.one_of(_STRINGS, _VALUES)
_DOCUMENTS = st.one_of(
    st.lists(st.tuples(st.one_of(_KEYS, _STRINGS), _VERSIONS, _SPACES), max_size=5).map(_object),
    _VALUES,
)


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """Return a document in JSON, or one with some bytes lost, doubled or put in."""
    data = draw(_DOCUMENTS).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        upto = draw(st.integers(at, min(len(data), at + 3)))
        put = draw(st.one_of(_SPECIAL, st.binary(max_size=2), st.just(data[at:upto] * 2)))
        data = data[:at] + put + data[upto:]
    return data


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def expected_version(data: bytes) -> str:
    """Return what VERSION echoes, by Python's own decoder."""
    try:
        document = json.loads(data.decode(), parse_constant=_refuse)
        version = document["cniVersion"] if isinstance(document, dict) else None
        encoded = version.encode() if isinstance(version, str) else b""
    except (ValueError, KeyError):
        return LATEST
    return encoded.decode() if 0 < len(encoded) <= 64 and b"\0" not in encoded else LATEST


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=inputs())
def test_shim_reads_json_as_python_does(forms: dict[str, Plugin], data: bytes) -> None:
    outcome = forms["sanitized"].run({"CNI_COMMAND": "VERSION"}, data)
    assert outcome.status == 0
    assert outcome.document["cniVersion"] == expected_version(data)
    assert json.dumps(expected_version(data)).encode() in outcome.output


@settings(max_examples=1000, deadline=None)
@given(data=inputs())
def test_python_form_reads_json_as_python_does(data: bytes) -> None:
    try:
        version = module._text(module._parse(data), "cniVersion", 64) or LATEST
    except module.CniError:
        version = LATEST
    assert version == expected_version(data)


# Both forms say the same, to the byte.

_VALUE = st.one_of(
    st.sampled_from(["", "eth0", "a", "..", "/proc/self/ns/net", "/dev/null", "/nonexistent"]),
    st.binary(max_size=20).map(lambda value: value.replace(b"\0", b"")),
)
_CONFIGS = st.fixed_dictionaries(
    {
        "cniVersion": st.sampled_from(["0.3.1", "1.0.0", "1.1.0", "2.0.0"]),
        "name": st.one_of(st.just("pods"), st.text(max_size=3)),
        "type": st.sampled_from(["overlay", "", 1]),
        "socket": st.sampled_from(["/dev/null/a", "relative", "/\u00e9/a", "/dev/null/\ud800", {}]),
    }
).map(lambda document: json.dumps(document).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    command=st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "X\n"]),
    values=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), _VALUE)
    ),
    path=st.sampled_from(["", "/opt/cni/bin"]),
    data=st.one_of(_CONFIGS, _CONFIGS, inputs()),
)
def test_forms_give_the_same_bytes(
    forms: dict[str, Plugin],
    command: str,
    values: dict[str, str | bytes],
    path: str,
    data: bytes,
) -> None:
    variables = {"CNI_COMMAND": command, "CNI_PATH": path, **values}
    python, shim = (forms[form].run(variables, data) for form in ("python", "shim"))
    assert (python.status, python.output) == (shim.status, shim.output)
    assert shim.document


# How they are built and put in place.


def test_shim_is_static(forms: dict[str, Plugin]) -> None:
    content = forms["shim"].path.read_bytes()
    assert content.startswith(b"\x7fELF\x02\x01"), "64 bits, little-endian"
    table, size, count = (
        *struct.unpack_from("<Q", content, 32),
        *struct.unpack_from("<HH", content, 54),
    )
    kinds = {struct.unpack_from("<I", content, table + i * size)[0] for i in range(count)}
    assert 1 in kinds, "PT_LOAD"
    assert not kinds & {2, 3}, "PT_DYNAMIC, PT_INTERP: it needs no library and no loader"
    assert len(content) < 1 << 20


def test_python_form_loads_nothing_that_is_slow(forms: dict[str, Plugin]) -> None:
    done = subprocess.run(
        [own_interpreter(), "-ISE", "-X", "importtime", forms["python"].path],
        env={"CNI_COMMAND": "VERSION"},
        input=b'{"cniVersion":"1.0.0"}',
        capture_output=True,
        check=True,
    )
    loaded = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"_socket" in loaded
    assert not loaded & {b"os", b"site", b"re", b"enum", b"json", b"socket", b"typing", b"pathlib"}


def test_python_form_is_one_file_with_an_absolute_interpreter(forms: dict[str, Plugin]) -> None:
    first, _, rest = forms["python"].path.read_text().partition("\n")
    assert first == f"#!{own_interpreter()} -ISE"
    assert Path(module.__file__).read_text() in rest


def executed(plugin: Path) -> set[str]:
    """Return the files whose compiled code the plugin executes as it is."""
    watch = "lambda event, args: event == 'exec' and print(args[0].co_filename, flush=True)"
    script = f"import runpy, sys; sys.addaudithook({watch}); "
    script += f"runpy.run_path({str(plugin)!r}, run_name='__main__')"
    done = subprocess.run(
        [own_interpreter(), "-ISE", "-c", script],
        env={"CNI_COMMAND": "VERSION"},
        input=b"",
        capture_output=True,
        check=True,
    )
    *files, answer = done.stdout.decode().splitlines()
    assert "supportedVersions" in answer
    return set(files)


def test_python_form_is_compiled_and_its_source_serves_another_version(
    tmp_path: Path, forms: dict[str, Plugin]
) -> None:
    installed = forms["python"].path.read_text()
    magic = repr(importlib.util.MAGIC_NUMBER)
    assert installed.count(magic) == 1
    other = tmp_path / "overlay"
    other.write_text(installed.replace(magic, repr(b"\0\0\r\n")))
    other.chmod(0o755)
    assert "plugin.py" in executed(forms["python"].path)
    assert "plugin.py" not in executed(other)
    for command in ("VERSION", "ADD"):
        expected = forms["python"].run({"CNI_COMMAND": command}, b'{"cniVersion":"0.4.0"}')
        found = Plugin("python", other).run({"CNI_COMMAND": command}, b'{"cniVersion":"0.4.0"}')
        assert (found.status, found.output) == (expected.status, expected.output)


def test_install_replaces_in_one_step(tmp_path: Path, forms: dict[str, Plugin]) -> None:
    target = tmp_path / "bin" / "overlay"
    install_plugin(target, own_interpreter())
    with target.open("rb") as running:
        install_shim(target, forms["shim"].path)
        assert running.read().startswith(b"#!")
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert list(target.parent.iterdir()) == [target]
    assert Plugin("shim", target).run({"CNI_COMMAND": "VERSION"}).status == 0


def test_failed_install_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "overlay"
    (target / "content").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        install_plugin(target, own_interpreter())
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [("python3", "absolute"), ("/opt/my python", "white space"), ("/" + "a" * 250, "too long")],
)
def test_interpreter_that_the_kernel_would_not_find(interpreter: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shebang(Path(interpreter))


def test_install_from_the_command_line(
    tmp_path: Path, forms: dict[str, Plugin], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "overlay"
    assert main([str(target)]) == 0
    assert target.read_bytes().startswith(f"#!{own_interpreter()} ".encode())
    assert Plugin("python", target).run({"CNI_COMMAND": "VERSION"}).status == 0
    assert main([str(target), "--interpreter", sys.executable]) == 0
    assert target.read_bytes().startswith(f"#!{sys.executable} ".encode())
    assert main([str(target), "--shim", str(forms["shim"].path)]) == 0
    assert target.read_bytes() == forms["shim"].path.read_bytes()
    assert main([str(target), "--interpreter", "python3"]) == 2
    assert main([str(target), "--shim", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
