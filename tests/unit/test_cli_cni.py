"""``overlayctl cni install``, and the configurations that are shipped."""

import json
import subprocess
from pathlib import Path

import pytest

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
    assert json.loads(file.read_text())["plugins"][0] == {
        "type": "overlay",
        "socket": "/run/x.sock",
    }
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
