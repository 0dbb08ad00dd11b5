"""The status page in a real browser: drawn, and deaf to what is written in the store."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import eventually

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs a browser (Debian: chromium, installed by `make test`)"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubNode]:
    hub = Hub(tmp_path_factory.mktemp("page"))
    try:
        hub.begin()
        nodes = [hub.node(number) for number in range(1, 6)]
        for each in nodes:
            each.start("--probe-interval=1s").wait_ready()
        eventually(lambda: nodes[0].overlayctl("mesh", "--links").count("n5") >= 8, timeout_s=20)
        yield nodes[0]
    finally:
        hub.close()


def browse(node: HubNode, place: Path, *words: str) -> str:
    """Open the page in the node's network and return what the browser printed."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",  # as root it has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--window-size=1150,1320",
        f"--user-data-dir={place / 'profile'}",
        *words,
        "http://127.0.0.1:9470/",
    ]
    environment = {**os.environ, "HOME": str(place)}
    done = node.netns.call(
        lambda: subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env=environment
        )
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_page_has_a_picture(node: HubNode, tmp_path: Path) -> None:
    """With OVERLAY_SCREENSHOT=docs/status-page.png this also makes the one in the docs."""
    picture = tmp_path / "page.png"
    browse(node, tmp_path, f"--screenshot={picture}")
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1150, 1320)
    assert len(data) > 30_000  # an empty page has some 6,000 bytes
    if os.environ.get("OVERLAY_SCREENSHOT"):
        Path(os.environ["OVERLAY_SCREENSHOT"]).write_bytes(data)


def plant(hub: Hub) -> None:
    """Write a lease whose node has a name that a careless page would execute."""
    owner = {"NodeID": "evil", "NodeName": EVIL}
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:66"}
    value = {
        "BackendType": "vxlan",
        "PublicIP": "192.0.2.66",
        "BackendData": data,
        "Overlay": owner,
    }
    hub.store(
        "s._writer.create(parse_subnet('10.244.66.0/24'),"
        f" parse_attributes('x', {json.dumps(value).encode()!r}), 0)"
    )


def test_page_is_drawn_and_names_from_the_store_do_nothing(node: HubNode, tmp_path: Path) -> None:
    plant(node.hub)
    eventually(lambda: "<script" in node.overlayctl("mesh", "--links"), timeout_s=20)
    document = browse(node, tmp_path, "--dump-dom")
    assert "<title>n1 - overlay</title>" in document
    assert "<script" not in document
    assert "<img" not in document
    assert "&lt;script&gt;" in document
    assert document.count("<svg") == 2
    assert "<h2>Recent events</h2>" in document
    assert "<td>agent-ready</td>" in document
    for name in ("n1", "n2", "n3", "n4", "n5"):
        assert f">{name}</text>" in document
        assert f"<td>{name}</td>" in document
