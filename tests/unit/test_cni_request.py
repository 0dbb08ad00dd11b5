"""What a runtime asks: every bad input of the specification is named, and nothing escapes."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.agent.cni_request import (
    BAD_CONFIG,
    BAD_VARIABLE,
    INCOMPATIBLE,
    UNDECODABLE,
    VERSIONS,
    CniError,
    CniRequest,
    parse_request,
    valid_attachments,
    version_for_errors,
    wanted_addresses,
    wanted_mac,
)
from tests.fuzz.targets import judge_request
from tests.unit import odd

VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
PLAIN = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay"}


def parse(command: str = "ADD", variables: Any = None, **keys: Any) -> CniRequest:
    document = {k: v for k, v in {**PLAIN, **keys}.items() if v is not ...}
    values = {**VARIABLES, "CNI_COMMAND": command, **(variables or {})}
    return parse_request(values, json.dumps(document).encode())


def refusal(*args: Any, **keys: Any) -> tuple[int, str]:
    with pytest.raises(CniError) as caught:
        parse(*args, **keys)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_request_is_what_was_asked(command: str) -> None:
    request = parse(command, {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=a=b;odd;;=c"})
    assert (request.command, request.version) == (command, "1.1.0")
    assert str(request.key) == "eth0 of container c1 in network fabric"
    assert request.netns == "/run/netns/pod"
    assert request.arguments == {"IgnoreUnknown": "1", "K8S_POD_NAME": "a=b", "": "c"}


@pytest.mark.parametrize(
    ("command", "absent", "is_fine"),
    [
        ("ADD", "CNI_CONTAINERID", False),
        ("ADD", "CNI_NETNS", False),
        ("ADD", "CNI_IFNAME", False),
        ("ADD", "CNI_PATH", True),
        ("CHECK", "CNI_CONTAINERID", False),
        ("CHECK", "CNI_NETNS", False),
        ("CHECK", "CNI_IFNAME", False),
        ("DEL", "CNI_CONTAINERID", False),
        ("DEL", "CNI_NETNS", True),
        ("DEL", "CNI_IFNAME", False),
        ("DEL", "CNI_PATH", True),
        ("GC", "CNI_CONTAINERID", True),
        ("STATUS", "CNI_IFNAME", True),
    ],
)
def test_empty_variable_is_an_absent_one(command: str, absent: str, is_fine: bool) -> None:
    if is_fine:
        assert parse(command, {absent: ""}).command == command
    else:
        assert refusal(command, {absent: ""}) == (BAD_VARIABLE, f"{absent} is missing")


@pytest.mark.parametrize("command", ["", "add", "VERSION", "ADD\n", " ADD", "X" * 5000])
def test_unknown_command_is_named(command: str) -> None:
    code, text = refusal(command)
    assert code == BAD_VARIABLE
    assert text.startswith("CNI_COMMAND ")


@pytest.mark.parametrize(
    "value",
    ["../etc", "a/../b", ".hidden", "-x", "_x", "a b", "a\n", "a/b", "a\0b", "ä", "a" * 256, "a:b"],
)
def test_container_id_and_network_name_are_plain(value: str) -> None:
    code, text = refusal(variables={"CNI_CONTAINERID": value})
    assert (code, text.split()[0]) == (BAD_VARIABLE, "CNI_CONTAINERID")
    assert len(text) < 120
    code, text = refusal(name=value)
    assert (code, text.split()[0]) == (BAD_CONFIG, '"name"')
    assert len(text) < 120


@pytest.mark.parametrize("name", [..., None, "", 5, [], {}, True, ["fabric"]])
def test_network_name_is_text(name: Any) -> None:
    assert refusal(name=name)[0] == BAD_CONFIG


@pytest.mark.parametrize("value", ["a", "A-1_.x", "0" * 64, "a" * 255])
def test_plain_names_pass(value: str) -> None:
    request = parse(variables={"CNI_CONTAINERID": value}, name=value)
    assert (request.key.container, request.key.network) == (value, value)


@pytest.mark.parametrize(
    "value",
    [".", "..", "a/b", "../eth0", "eth0:1", "eth 0", "eth0\n", "eth0\t", "\u2003", "e" * 16, "e\0"],
)
def test_interface_name_is_one_of_the_kernels(value: str) -> None:
    code, text = refusal(variables={"CNI_IFNAME": value})
    assert (code, text.split()[0]) == (BAD_VARIABLE, "CNI_IFNAME")


@pytest.mark.parametrize("value", ["e", "e" * 15, "wlan0.7", "...", "eth-0_@x"])
def test_interface_names_that_pass(value: str) -> None:
    assert parse(variables={"CNI_IFNAME": value}).key.interface == value


@pytest.mark.parametrize(
    "value",
    [pytest.param("é" * 15, id="30 bytes"), pytest.param("eth%d", id="pattern")],
)
def test_interface_name_is_counted_in_bytes_and_no_pattern(value: str) -> None:
    assert refusal(variables={"CNI_IFNAME": value})[0] == BAD_VARIABLE


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param(b"", UNDECODABLE, id="nothing"),
        pytest.param(b"{", UNDECODABLE, id="cut off"),
        pytest.param(b'{"name": "a"} x', UNDECODABLE, id="more behind"),
        pytest.param(b"\xff\xfe", UNDECODABLE, id="no text"),
        pytest.param(b'{"a": "\xff"}', UNDECODABLE, id="not UTF-8"),
        pytest.param(b"[" * 100_000, UNDECODABLE, id="deep"),
        pytest.param(b'{"a":' * 100_000, UNDECODABLE, id="deep objects"),
        pytest.param(b'{"a": ' + b"9" * 10_000 + b"}", UNDECODABLE, id="long number"),
        pytest.param(b"[]", UNDECODABLE, id="list"),
        pytest.param(b"null", UNDECODABLE, id="null"),
        pytest.param(b'"text"', UNDECODABLE, id="text"),
        pytest.param(b"7", UNDECODABLE, id="number"),
        pytest.param(b"{}", INCOMPATIBLE, id="no version: 0.1.0"),
    ],
)
def test_configuration_that_is_none(text: bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        parse_request(VARIABLES, text)
    assert caught.value.code == code
    assert version_for_errors(text) == "1.1.0"


@pytest.mark.parametrize(
    "version",
    [..., None, "", "0.1.0", "0.2.0", "1.2.0", "1.1", "1.1.0 ", "1.1.0\n", 1.1, [], {}, True],
)
def test_unknown_version_is_incompatible(version: Any) -> None:
    code, text = refusal(cniVersion=version)
    assert code == INCOMPATIBLE
    assert '"cniVersion"' in text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("command", "since"),
    [("ADD", "0.3.0"), ("DEL", "0.3.0"), ("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")],
)
def test_command_is_there_from_its_version_on(command: str, since: str, version: str) -> None:
    if version >= since:
        assert parse(command, cniVersion=version).version == version
    else:
        code, text = refusal(command, cniVersion=version)
        assert code == INCOMPATIBLE
        assert command in text
    assert version_for_errors(json.dumps({"cniVersion": version}).encode()) == version


def runtime(**keys: Any) -> dict[str, Any]:
    return {"runtimeConfig": keys}


@pytest.mark.parametrize(
    ("keys", "args", "expected"),
    [
        pytest.param({}, "", [], id="none"),
        pytest.param(runtime(ips=["10.1.0.5"]), "", ["10.1.0.5"], id="runtimeConfig"),
        pytest.param(runtime(IPs=["10.1.0.5/24"]), "", ["10.1.0.5"], id="case, length"),
        pytest.param(
            runtime(ips=["10.1.0.5", "fd00::5/64"]), "", ["10.1.0.5", "fd00::5"], id="two"
        ),
        pytest.param({"args": {"cni": {"ips": ["10.1.0.6"]}}}, "", ["10.1.0.6"], id="args.cni"),
        pytest.param({}, "IP=10.1.0.7", ["10.1.0.7"], id="CNI_ARGS"),
        pytest.param({}, "IP=10.1.0.7,fd00::7", ["10.1.0.7", "fd00::7"], id="Multus"),
        pytest.param({}, "MAC=02:00:00:00:00:01;IP=10.1.0.7", ["10.1.0.7"], id="any order"),
        pytest.param({}, "IP=", [], id="empty in CNI_ARGS"),
        pytest.param(
            {"args": {"cni": {"ips": ["10.1.0.6"]}}},
            "IP=10.1.0.7",
            ["10.1.0.6"],
            id="args.cni wins",
        ),
        pytest.param(
            {**runtime(ips=["10.1.0.5"]), "args": {"cni": {"ips": ["10.1.0.6"]}}},
            "IP=10.1.0.7",
            ["10.1.0.5"],
            id="runtimeConfig wins",
        ),
        pytest.param({"runtimeConfig": None, "args": []}, "", [], id="objects that are none"),
    ],
)
def test_wanted_addresses(keys: dict[str, Any], args: str, expected: list[str]) -> None:
    request = parse(variables={"CNI_ARGS": args}, **keys)
    assert [str(address) for address in wanted_addresses(request)] == expected


@pytest.mark.parametrize(
    "ips",
    [
        "10.1.0.5",
        5,
        {"a": 1},
        True,
        [5],
        [None],
        [[]],
        [""],
        ["x"],
        ["10.1.0.256"],
        ["10.1.0.5/33"],
        ["fe80::1%eth0"],
        ["10.1.0.5/24%eth0"],
        ["10.1.0.5/24/3"],
        [" 10.1.0.5"],
        ["10.1.0.5\n"],
    ],
)
def test_addresses_that_are_none(ips: Any) -> None:
    with pytest.raises(CniError) as caught:
        wanted_addresses(parse(**runtime(ips=ips)))
    assert caught.value.code == BAD_CONFIG
    assert str(caught.value).startswith('"ips"')


@pytest.mark.parametrize(
    ("keys", "args", "expected"),
    [
        pytest.param({}, "", None, id="none"),
        pytest.param(runtime(mac="02:AB:00:00:00:01"), "", "02:ab:00:00:00:01", id="runtimeConfig"),
        pytest.param(
            {"args": {"cni": {"mac": "02:00:00:00:00:02"}}}, "", "02:00:00:00:00:02", id="args.cni"
        ),
        pytest.param({}, "IP=10.0.0.1;MAC=02:00:00:00:00:03", "02:00:00:00:00:03", id="CNI_ARGS"),
        pytest.param({}, "IgnoreUnknown=1;MAC=;IP=", None, id="empty means absent"),
        pytest.param(
            {**runtime(Mac="02:00:00:00:00:01"), "args": {"cni": {"mac": "02:00:00:00:00:02"}}},
            "MAC=02:00:00:00:00:03",
            "02:00:00:00:00:01",
            id="runtimeConfig wins",
        ),
    ],
)
def test_wanted_mac(keys: dict[str, Any], args: str, expected: str | None) -> None:
    assert wanted_mac(parse(variables={"CNI_ARGS": args}, **keys)) == expected


@pytest.mark.parametrize(
    "mac", ["x", 5, ["02:00:00:00:00:01"], "01:00:5e:00:00:01", "00:00:00:00:00:00", "02-00"]
)
def test_macs_that_are_none(mac: Any) -> None:
    with pytest.raises(CniError) as caught:
        wanted_mac(parse(**runtime(mac=mac)))
    assert (caught.value.code, str(caught.value)[:5]) == (BAD_CONFIG, '"mac"')


ONE = {"containerID": "a", "ifname": "eth0"}
VALID, OLDER = "cni.dev/valid-attachments", "cni.dev/attachments"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({}, None, id="key absent: nothing is to be deleted"),
        pytest.param({VALID: None}, [], id="null"),
        pytest.param({VALID: []}, [], id="empty"),
        pytest.param({VALID: [ONE]}, [("a", "eth0")], id="one"),
        pytest.param({VALID: [ONE, ONE, {**ONE, "more": 1}]}, [("a", "eth0")], id="thrice"),
        pytest.param({OLDER: [ONE]}, [("a", "eth0")], id="the other key"),
        pytest.param({VALID: [], OLDER: [ONE]}, [], id="both"),
    ],
)
def test_valid_attachments(config: dict[str, Any], expected: list[tuple[str, str]] | None) -> None:
    found = valid_attachments(config)
    assert (None if found is None else sorted(found)) == expected


@pytest.mark.parametrize(
    "listed",
    [
        {},
        "a",
        0,
        False,
        ONE,
        [5],
        [None],
        [[]],
        ["a"],
        [{}],
        [{"containerID": "a"}],
        [{**ONE, "ifname": 5}],
        [{**ONE, "containerID": None}],
        [ONE, {}],
    ],
)
def test_list_of_attachments_that_is_none_deletes_nothing(listed: Any) -> None:
    with pytest.raises(CniError) as caught:
        valid_attachments({VALID: listed})
    assert caught.value.code == BAD_CONFIG


names = st.sampled_from(["", *VARIABLES, "CNI_ARGS"])
texts = odd.texts | st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "c1", "eth0", "IP=1;="])
keys = st.sampled_from(
    ["prevResult", "cniVersion", "name", "type", "runtimeConfig", "args", "ipam", VALID]
)
inner_keys = st.sampled_from(["interfaces", "routes", "ips", "IPs", "mac", "cni", "type"])
configs = st.dictionaries(
    keys, odd.anything | st.dictionaries(inner_keys, odd.anything, max_size=3)
)


@given(st.dictionaries(names, texts), st.binary())
def test_any_bytes_are_a_request_or_an_error(variables: dict[str, str], text: bytes) -> None:
    judge_request(variables, text)


@given(st.dictionaries(names, texts), configs)
@example({"CNI_IFNAME": "\ud800"}, {})
@example({"CNI_NETNS": "\ud800\0"}, {})
@example({}, {"dns": {"a": float("nan")}})
@example({}, {"prevResult": {"interfaces": [{"name": float("inf")}]}})
@example({}, {"prevResult": {"dns": odd.Deep(900)}})
@example({}, {"prevResult": {"interfaces": [{"name": "eth0", "sandbox": "x", "mac": 5}]}})
@example({}, {"name": odd.Deep(900)})
@example({}, {"runtimeConfig": {"ips": [10**4000]}})
def test_any_document_is_a_request_or_an_error(
    variables: dict[str, str], config: dict[str, Any]
) -> None:
    judge_request({**VARIABLES, **variables}, odd.dumped({**PLAIN, **config}))
    judge_request(VARIABLES, odd.dumped(config))


@pytest.mark.parametrize("depth", [100, 127])
def test_agent_takes_what_the_plugin_takes(depth: int) -> None:
    """Both allow 128 levels; the configuration itself is one of them."""
    deep = json.loads("[" * depth + "]" * depth)
    assert parse(x=deep).config["x"] == deep
