"""The network configuration that the agent writes, and its removal."""

import json
import threading
from pathlib import Path

import pytest

from overlay.agent.conflist import CniFlags, ConfigFile
from overlay.agent.status import RUNNING, Status
from overlay.cli.cni_removal import remove_config, remove_plugin
from tests.kernel.netns import eventually

SOCKET = Path("/run/overlay/cni.sock")
NAME = "10-overlay.conflist"


def config_file(place: Path, *, with_portmap: bool = True) -> ConfigFile:
    (place / "bin").mkdir()
    (place / "net.d").mkdir()
    if with_portmap:
        (place / "bin/portmap").write_text("#!/bin/sh\n")
        (place / "bin/portmap").chmod(0o755)
    return ConfigFile(CniFlags(place / "net.d", place / "bin"), SOCKET, 0.01)


def types(path: Path) -> list[str]:
    return [plugin["type"] for plugin in json.loads(path.read_text())["plugins"]]


def test_nothing_is_written_before_the_agent_is_ready(tmp_path: Path) -> None:
    file, status, stop = config_file(tmp_path), Status(), threading.Event()
    target = tmp_path / "net.d" / NAME
    thread = threading.Thread(target=file.run, args=(status, stop))
    thread.start()
    try:
        status.update(kernel_errors=("no route",), phase=RUNNING)
        assert not target.exists()
        status.update(kernel_errors=())
        eventually(target.exists, what=f"{NAME} of an agent that is ready")
        target.unlink()
        eventually(target.exists, what=f"{NAME} after somebody deleted it")
    finally:
        stop.set()
        thread.join(20)
    assert types(target) == ["overlay", "portmap"]
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == [NAME]


def test_plugin_that_the_host_lacks_is_left_out(tmp_path: Path) -> None:
    file = config_file(tmp_path, with_portmap=False)
    assert file.keep(tmp_path / "net.d") == ""
    assert types(tmp_path / "net.d" / NAME) == ["overlay"]


def test_configuration_that_comes_first_is_named(tmp_path: Path) -> None:
    file = config_file(tmp_path)
    (tmp_path / "net.d/05-other.conf").write_text("{}")
    assert "05-other.conf sorts before 10-overlay.conflist" in file.keep(tmp_path / "net.d")


def test_folder_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, status, stop = config_file(tmp_path), Status(), threading.Event()
    (tmp_path / "net.d").rmdir()
    (tmp_path / "net.d").write_text("a file")
    status.update(phase=RUNNING)
    thread = threading.Thread(target=file.run, args=(status, stop))
    thread.start()
    try:
        eventually(lambda: "--cni-conf-dir" in caplog.text, what="a warning")
    finally:
        stop.set()
        thread.join(20)
    assert len(caplog.records) == 1


def test_removal_takes_what_is_ours_alone(tmp_path: Path) -> None:
    file = config_file(tmp_path)
    file.keep(tmp_path / "net.d")
    (tmp_path / "bin/overlay").write_text("")
    (tmp_path / "net.d/20-overlay-containerd.conflist").write_text('{"plugins": []}')
    before = sorted(path.name for path in tmp_path.rglob("*"))
    told: list[str] = []
    removed = remove_config(tmp_path / "net.d", told.append)
    removed += remove_plugin(tmp_path / "bin", told.append)
    assert removed == told == [f"file {tmp_path}/net.d/{NAME}", f"file {tmp_path}/bin/overlay"]
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == [name for name in before if name not in {NAME, "overlay"}]
    assert remove_config(tmp_path / "net.d", told.append) == []
    assert remove_plugin(tmp_path / "bin", told.append) == []
    assert remove_config(None, told.append) == []
