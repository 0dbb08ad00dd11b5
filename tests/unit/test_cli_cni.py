"""``overlayctl cni install``, and the configurations that are shipped."""

import json
import subprocess
from pathlib import Path

import pytest

from overlay.cli import cni
from overlay.cli.main import main
from overlay.model.conflist import RUNTIMES, conflist

SHIPPED = Path(__file__).parents[2] / "cni" / "conflists"


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_shipped_configuration_is_what_install_writes(runtime: str) -> None:
    name = "10-overlay.conflist" if runtime == "kubernetes" else f"{runtime}.conflist"
    assert json.loads((SHIPPED / name).read_text()) == conflist(runtime)


def test_install_puts_a_plugin_that_runs_and_a_configuration(tmp_path: Path) -> None:
    places = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "conf")]
    for _ in range(2):
        assert main(["--socket", "/run/x.sock", "cni", "install", *places]) == 0
    file = tmp_path / "conf" / "10-overlay.conflist"
    ours = {"type": "overlay", "socket": "/run/x.sock"}
    assert json.loads(file.read_text())["plugins"] == [ours], "portmap is not there"
    assert file.stat().st_mode & 0o777 == 0o644
    done = subprocess.run(
        [tmp_path / "bin" / "overlay"],
        env={"CNI_COMMAND": "VERSION"},
        input=b'{"cniVersion": "1.0.0"}',
        capture_output=True,
        check=False,
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "10-overlay.conflist",
        "overlay",
    ]


def test_place_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = ["--bin-dir", str(tmp_path / "file" / "bin"), "--conf-dir", str(tmp_path)]
    assert main(["cni", "install", *places]) == 2
    assert "file" in capsys.readouterr().err
    assert not (tmp_path / "10-overlay.conflist").exists()


def installed(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    places = ["--bin-dir", str(place / "bin"), "--conf-dir", str(place / "conf")]
    assert main(["cni", "install", *places, "-o", "json", *words]) == 0
    document: dict[str, str] = json.loads(capsys.readouterr().out)
    return document


def test_chained_plugin_is_named_only_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one named that is not there, no pod could be attached."""
    told = installed(tmp_path, capsys)
    file = Path(told["config"])
    assert told["left out"] == "portmap"
    assert [p["type"] for p in json.loads(file.read_text())["plugins"]] == ["overlay"]
    portmap = tmp_path / "bin" / "portmap"
    portmap.write_text("#!/bin/sh\n")
    portmap.chmod(0o755)
    assert "left out" not in installed(tmp_path, capsys)
    types = [p["type"] for p in json.loads(file.read_text())["plugins"]]
    assert types == ["overlay", "portmap"]


def test_form_in_c_is_taken_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni, "SHIM", tmp_path / "none")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert installed(tmp_path, capsys, "--only", "plugin")["form"] == "Python"
    beside = tmp_path / "overlay"
    beside.write_bytes(b"#!/usr/bin/python3\n")
    assert installed(tmp_path, capsys, "--only", "plugin")["form"] == "Python"
    beside.write_bytes(b"\x7fELF of the image")
    assert installed(tmp_path, capsys, "--only", "plugin")["form"] == "C"
    assert (tmp_path / "bin" / "overlay").read_bytes() == beside.read_bytes()
