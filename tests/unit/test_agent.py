"""The agent's small parts: flags, files, logs."""

import io
import json
import logging
from pathlib import Path

import pytest

from overlay.agent.files import format_subnet_file, read_subnet_file, write_file
from overlay.agent.flag_values import parse_duration
from overlay.agent.flags import parse_flags
from overlay.agent.logs import set_up_logs
from overlay.model.errors import UsageError
from overlay.model.network import parse_network_config
from tests.unit.worlds import DUAL, V4, V6, subnet


def test_flag_beats_environment_beats_default() -> None:
    environment = {"OVERLAYD_ETCD_PREFIX": "/from/env", "OVERLAYD_IFACE": "eth1,eth2"}
    flags = parse_flags(["--node-name=a"], environment)
    assert flags.etcd.prefix == "/from/env"
    assert flags.underlay.iface == ("eth1", "eth2")
    flags = parse_flags(["--node-name=a", "--etcd-prefix=/flag"], environment)
    assert flags.etcd.prefix == "/flag"
    assert parse_flags(["--node-name=a"], {}).etcd.prefix == "/coreos.com/network"


def test_environment_is_checked_like_a_flag() -> None:
    with pytest.raises(UsageError, match="--healthz-port"):
        parse_flags(["--node-name=a"], {"OVERLAYD_HEALTHZ_PORT": "x"})


def test_flannels_spelling_is_taken() -> None:
    words = "-etcd-endpoints=http://127.0.0.1:1,http://127.0.0.1:2 -iface eth0"
    flags = parse_flags([*words.split(), "-subnet-lease-renew-margin", "30", "-node-name=a"], {})
    assert len(flags.etcd.endpoints) == 2
    assert flags.underlay.iface == ("eth0",)
    assert flags.renew_margin_s == 1800


def test_password_is_in_no_representation() -> None:
    words = ["--node-name=a", "--etcd-username=u"]
    flags = parse_flags(words, {"OVERLAYD_ETCD_PASSWORD": "sesame"})
    assert flags.etcd.password == "sesame"
    assert "sesame" not in repr(flags)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("24h", 86400), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("words", [["--audit-interval=0s"], ["--audit-interval=5"]])
def test_duration_that_is_none(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--audit-interval"):
        parse_flags(words, {})


FILE_V4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n"
FILE_V6 = "FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:3::1/64\n"


@pytest.mark.parametrize(
    ("config", "text"), [(V4, FILE_V4), (V6, FILE_V6), (DUAL, FILE_V4 + FILE_V6)]
)
def test_subnet_file_is_written_and_read_back(config: str, text: str, tmp_path: Path) -> None:
    parsed = parse_network_config(config)
    mine = subnet(3, parsed.families)
    written = format_subnet_file(parsed, mine, 1450)
    assert written == text + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    path = tmp_path / "deep" / "subnet.env"
    write_file(path, written)
    assert read_subnet_file(path) == mine
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["subnet.env"]


@pytest.mark.parametrize("text", ["", "FLANNEL_SUBNET=", "FLANNEL_SUBNET=x\n", "\x00\xff"])
def test_subnet_file_that_cannot_be_read_is_as_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(text.encode("latin-1"))
    assert read_subnet_file(path) is None
    assert read_subnet_file(tmp_path / "absent") is None


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_peer_wrote_cannot_forge_a_log_line(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    set_up_logs(form, "info")
    try:
        logging.getLogger("overlay.test").info("node %s", "evil\n2026 ERROR all is lost\x1b[2J")
    finally:
        logging.getLogger().handlers.clear()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    if form == "json":
        assert json.loads(lines[0])["logger"] == "overlay.test"
