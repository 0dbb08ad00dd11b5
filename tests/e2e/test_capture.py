"""``overlayctl capture`` on real tunnel traffic: decoded, chosen, kept, and ended."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from uuid import uuid4

import pytest

from overlay.lab import netns
from overlay.lab.fabric import running
from overlay.lab.topology import LabOptions
from overlay.model.address import FAMILIES, Family
from tests.e2e.ways import Scene
from tests.kernel.netns import eventually, host_unchanged

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    options = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=3, pods=1, families=FAMILIES)
    with host_unchanged(), running(options) as lab:
        yield Scene(lab)


def addresses(scene: Scene, pod: str) -> dict[Family, str]:
    (found,) = (each for each in scene.lab.pods() if each.name == pod)
    return {family: str(address) for family, address in found.addresses.items()}


@contextlib.contextmanager
def talking(scene: Scene, *targets: str) -> Iterator[None]:
    """Send a datagram from ``n1-p1`` to each of ``targets``, again and again, until the end."""
    words = ["sh", "-c", "; ".join(
        ["while :", "do true", *(f"ping -c1 -W1 {t} >/dev/null" for t in targets),
         "sleep 0.05", "done"]
    ).replace("do true;", "do")]  # fmt: skip
    process = subprocess.Popen(scene.lab.command("n1-p1", words), start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait(20)


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_inner_packet_comes_first_with_names(scene: Scene) -> None:
    far = addresses(scene, "n2-p1")
    with talking(scene, *far.values()):
        done = scene.ask("capture --count 12 --seconds 30")
    assert done.returncode == 0, done.stderr
    own = addresses(scene, "n1-p1")
    v4, v6 = Family.IPV4, Family.IPV6
    first = f"{own[v4]} (n1-p1) > {far[v4]} (pod of n2) icmp echo-request"
    assert f"out {first}" in done.stdout
    assert "| 192.0.2.1 (n1) > 192.0.2.2 (n2) VNI 1" in done.stdout
    assert f"in  {far[v6]} (pod of n2) > {own[v6]} (n1-p1) ICMPv6 Echo Reply" in done.stdout
    assert "| 2001:db8:1::1 (n1) > 2001:db8:1::2 (n2) VNI 1" in done.stdout
    assert done.stdout.splitlines()[-1] == "12 packets shown; none dropped"


def test_peer_and_pod_choose_what_is_seen(scene: Scene) -> None:
    two, three = addresses(scene, "n2-p1"), addresses(scene, "n3-p1")
    with talking(scene, *two.values(), *three.values()):
        peer = scene.ask("capture --peer n3 --count 8 --seconds 30 -o json")
        pod = scene.ask(f"capture --pod {two[Family.IPV6]} --count 4 --seconds 30 -o json")
        nobody = scene.ask("capture --pod 10.244.0.77 --seconds 0.5 -o json")
    *packets, summary = events(peer.stdout)
    assert len(packets) == 8
    assert summary == {"summary": {"shown": 8, "matched": summary["summary"]["matched"],  # type: ignore[index]  # JSON
                                   "dropped": 0, "file": None}}  # fmt: skip
    assert all("n3" in (p["outer"]["source_name"], p["outer"]["destination_name"]) for p in packets)  # type: ignore[index]  # JSON
    families = {":" in p["outer"]["source"] for p in packets}  # type: ignore[index]  # JSON
    assert families == {False, True}
    *packets, _ = events(pod.stdout)
    assert all(two[Family.IPV6] in p["inner"].values() for p in packets)  # type: ignore[attr-defined]  # JSON
    assert len(events(nobody.stdout)) == 1


def test_file_is_read_by_others(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "seen.pcap"
    far = addresses(scene, "n2-p1")
    with talking(scene, *far.values()):
        done = scene.ask(f"capture --write {path} --count 6 --seconds 30")
    assert f"6 packets shown, kept in {path}; none dropped" in done.stdout
    from scapy.utils import rdpcap  # half a second

    assert len(rdpcap(str(path))) == 6
    if shutil.which("tcpdump"):
        shown = scene.run("n1", "tcpdump", "-nr", str(path))
        assert "192.0.2.1" in shown
        assert f"> {far[Family.IPV4]}: ICMP echo request" in shown


def test_interrupt_ends_it_with_the_summary(scene: Scene) -> None:
    far = addresses(scene, "n2-p1")
    with talking(scene, *far.values()), scene.start("capture") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert first.startswith(("in ", "out "))
    assert "packets shown; none dropped" in out
    assert (err, process.returncode) == ("", 0)


def test_flood_is_dropped_and_counted_not_kept(scene: Scene) -> None:
    """A reader of a thousand packets a second, and a hundred times as many: memory is bounded."""
    far = IPv4Address(addresses(scene, "n2-p1")[Family.IPV4])
    pod = next(p for p in scene.lab.pods() if p.name == "n1-p1")
    with (
        netns.inside(
            pod.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ) as out,
        scene.start("capture", "--seconds", "8", "-o", "json") as process,
    ):
        assert process.stdout is not None
        out.sendto(b"x", (str(far), 9))
        lines: list[str] = []

        def has_begun() -> bool:
            out.sendto(b"x", (str(far), 9))
            return process.stdout is not None and is_readable(process.stdout.fileno())

        eventually(has_begun, timeout_s=20)
        for _ in range(40_000):
            with contextlib.suppress(BlockingIOError):
                out.sendto(bytes(1200), (str(far), 9))
        text, _ = process.communicate(timeout=60)
        lines += text.splitlines()
    summary = json.loads(lines[-1])["summary"]
    assert summary["dropped"] > 0
    assert summary["shown"] + summary["dropped"] <= summary["matched"]


def is_readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0.05)[0])


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        ("--count 0", "--count 0: more than 0", 2),
        ("--seconds -1", "--seconds -1: more than 0", 2),
        ("--peer nobody", "'nobody' is no address", 2),
        ("--write /gone/x.pcap --count 1", "--write /gone/x.pcap: No such file or directory", 2),
    ],
)
def test_what_cannot_be_captured_is_named(scene: Scene, words: str, said: str, status: int) -> None:
    done = scene.ask(f"capture {words}")
    assert said in done.stderr
    assert done.returncode == status


def test_missing_scapy_is_named_with_the_way_out(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "scapy").mkdir()
    (tmp_path / "scapy" / "__init__.py").write_text("raise ImportError('not here')\n")
    done = subprocess.run(
        scene.command("capture", "--count", "1"),
        capture_output=True, text=True, check=False, timeout=60,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "capture needs scapy, which is not installed here: `pip install" in done.stderr
