"""Files between two runs, damaged in any way: read as they were written, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from overlay.agent.attachments import Attachments
from overlay.agent.files import read_subnet_file
from overlay.lab import pods
from overlay.lab.errors import LabError
from overlay.lab.state import LabState, StateDir
from overlay.model.attachment import AttachmentFormatError, parse_attachment
from overlay.model.document import parse_json
from overlay.model.subnet import Subnet, parse_subnet_key
from tests.unit import odd

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

ATTACHMENT: dict[str, Any] = {
    "format": 1,
    "network": "fabric",
    "container": "c1",
    "interface": "eth0",
    "sandbox": "/run/netns/pod",
    "addresses": ["10.1.0.2", "fd00::2"],
    "link": "opod1",
    "mac": "02:00:00:00:00:01",
    "mtu": 1430,
    "arguments": {"K8S_POD_NAME": "web"},
    "complete": True,
}
likely = st.sampled_from(
    [
        "10.1.0.2",
        "fd00::2",
        "fe80::1%eth0",
        "02:00:00:00:00:01",
        "01:00:5e:00:00:01",
        1430,
        -1,
        True,
    ]
)


@given(st.dictionaries(st.sampled_from(sorted(ATTACHMENT)), odd.anything | likely, max_size=3))
@example({"mtu": 10**400})
@example({"mtu": "1430"})
@example({"mtu": True})
@example({"mac": 5})
@example({"mac": "01:00:5e:00:00:01"})
@example({"addresses": [167837698]})
@example({"addresses": "10.1.0.2"})
@example({"arguments": {"a": 1}})
@example({"arguments": [["a", "b"]]})
@example({"container": "\ud800"})
@example({"format": odd.Deep(900)})
def test_attachment_reads_as_it_was_written_or_not_at_all(changes: dict[str, Any]) -> None:
    try:
        document = parse_json(odd.dumped({**ATTACHMENT, **changes}))
    except ValueError:
        return
    found = odd.outcome(AttachmentFormatError, lambda: parse_attachment(document))
    if isinstance(found, AttachmentFormatError):
        assert len(str(found)) < 200
        return
    written = found.to_json()
    assert parse_attachment(written) == found
    different = {name for name in ATTACHMENT if written[name] != document[name]}
    assert different <= {"addresses", "mac", "complete"}, "spelling, or what is not true"


@given(odd.anything)
def test_any_document_is_an_attachment_or_a_format_error(document: Any) -> None:
    if not isinstance(document, odd.Deep):
        assert isinstance(
            odd.outcome(AttachmentFormatError, lambda: parse_attachment(document)),
            AttachmentFormatError,
        )


@one_folder
@given(odd.damaged(json.dumps(ATTACHMENT).encode()))
@example(b"[" * 100_000)
@example(b'{"format": 1, "mtu": NaN}')
def test_damaged_file_never_keeps_the_agent_from_starting(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "attachments"
    folder.mkdir(exist_ok=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    (folder / "boot_id").write_text(boot)
    (folder / "good.json").write_text(json.dumps({**ATTACHMENT, "container": "good"}))
    (folder / "damaged.json").write_bytes(content)
    kept = {a.key.container for a in Attachments(folder).list()}
    assert "good" in kept
    assert len(kept) <= 2


ENV = (
    b"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n"
    b"FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:3::1/64\n"
    b"FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
)


@one_folder
@given(odd.damaged(ENV) | st.binary())
@example(b"FLANNEL_SUBNET=fd00::1/64\nFLANNEL_IPV6_SUBNET=fd00:9::1/64\n")
@example(b"FLANNEL_IPV6_SUBNET=fe80::1%eth0/64\n")
@example(b"FLANNEL_SUBNET=10.244.3.1\n")
@example(b"FLANNEL_SUBNET==\n")
def test_any_subnet_file_names_a_subnet_or_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(content)
    found = read_subnet_file(path)
    assert found is None or isinstance(found, Subnet)
    if found is not None:
        assert {n.version for n in found.networks()} <= {4, 6}
        is_whole = any(n.prefixlen == 0 for n in found.networks())
        assert is_whole or parse_subnet_key(found.key) == found
    lab = odd.outcome(LabError, lambda: pods.read_subnet_file(path))
    assert isinstance(lab, LabError | pods.SubnetFile)


def test_subnet_file_of_the_wrong_family_is_none(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text("FLANNEL_SUBNET=fd00::1/64\n")
    assert read_subnet_file(path) is None


LAB = {
    "format": 1,
    "options": {
        "name": "a", "nodes": 3, "pods": 2, "backend": "vxlan", "families": [4],
        "egress": "island", "direct_routing": False, "mtu": 1500,
    },
    "ready": True,
    "processes": [{"role": "overlayd n1", "pid": 7, "start_time": 9}],
}  # fmt: skip


@one_folder
@given(
    odd.damaged(json.dumps(LAB).encode())
    | st.dictionaries(st.sampled_from(sorted(LAB)), odd.anything, max_size=2).map(
        lambda changes: odd.dumped({**LAB, **changes})
    )
    | odd.anything.map(odd.dumped)
)
@example(b"[]")
@example(b"[" * 100_000)
@example(odd.dumped({**LAB, "processes": 5}))
@example(odd.dumped({**LAB, "processes": [{"role": 1, "pid": "x", "start_time": None}]}))
@example(odd.dumped({**LAB, "options": {"name": 5}}))
@example(odd.dumped({**LAB, "options": {**LAB["options"], "nodes": "3"}}))  # type: ignore[dict-item]  # a dict
def test_any_state_of_a_lab_is_one_or_a_lab_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    found = odd.outcome(LabError, StateDir(tmp_path).read)
    if isinstance(found, LabError):
        return
    assert isinstance(found, LabState)
    StateDir(tmp_path).write(found)
    assert StateDir(tmp_path).read() == found
    assert all(isinstance(p.pid, int) and p.pid > 0 for p in found.processes)


def test_state_of_a_lab_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(LAB))
    found = StateDir(tmp_path).read()
    assert (found.options.name, found.is_ready, found.processes[0].pid) == ("a", True, 7)
    (tmp_path / "state.json").unlink()
    with pytest.raises(LabError, match="is not up"):
        StateDir(tmp_path).read()
