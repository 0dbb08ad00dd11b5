"""``overlayctl`` as a shell sees it: what it prints, and what it ends with."""

import json
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from overlay.cli.flags import StoreConfig
from overlay.cli.main import main
from overlay.model.address import Family
from overlay.model.lease import LeaseAttributes, Owner
from overlay.model.subnet import parse_subnet
from overlay.store.base import StoreAccessError, StoreUnavailableError
from overlay.store.etcd_config import EtcdConfig
from overlay.store.memory import MemoryLeaseStore

CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}'


def attributes(index: int, *, owner: Owner | None) -> LeaseAttributes:
    return LeaseAttributes(
        backend_type="vxlan",
        public={Family.IPV4: ip_address(f"192.0.2.{index}")},
        backend_data={Family.IPV4: {"VNI": 7, "VtepMAC": f"02:00:00:00:00:0{index}"}},
        owner=owner,
    )


@pytest.fixture
def store() -> MemoryLeaseStore:
    """Return a fabric of a node, a flannel node and a reservation, at second 0."""
    store = MemoryLeaseStore(clock=lambda: 0.0)
    store.put_config(CONFIG)
    owner = Owner("id-1", "n1", "0.1.0", "2026-08-01T12:00:00Z")
    store.put_lease(parse_subnet("10.244.1.0/24"), attributes(1, owner=owner), ttl_s=3600)
    store.put_lease(parse_subnet("10.244.2.0/24"), attributes(2, owner=None), ttl_s=60)
    store.reserve(parse_subnet("10.244.10.0/24"), "n3")
    return store


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(store: MemoryLeaseStore, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str, **environment: str) -> tuple[int, str, str]:
        status = main(argv, environment=environment, open_store=lambda _config: store)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_key_of_the_fabric_is_rotated_and_never_shown(run: Run, store: MemoryLeaseStore) -> None:
    status, out, err = run("network", "rotate-key", "-o", "json")
    assert (status, err, json.loads(out)) == (0, "", {"rotated": True, "overlap_s": 60})
    newest = store.view().fabric_keys.newest
    assert newest is not None
    _, text, _ = run("network", "rotate-key")
    assert newest.hex() not in out + text
    assert store.view().fabric_keys.previous == newest


def test_leases_are_listed_by_address_as_plain_columns(run: Run) -> None:
    status, out, err = run("leases", "--no-ttl")
    assert (status, err) == (0, "")
    assert out == (
        "SUBNET          NODE       PUBLIC     BACKEND  MAC                KIND         "
        "SINCE                 UNTIL\n"
        "10.244.1.0/24   n1         192.0.2.1  vxlan    02:00:00:00:00:01  lease        "
        "2026-08-01T12:00:00Z  -\n"
        "10.244.2.0/24   192.0.2.2  192.0.2.2  vxlan    02:00:00:00:00:02  flannel      "
        "-                     -\n"
        "10.244.10.0/24  n3         -          -        -                  reservation  "
        "-                     never\n"
    )


def test_leases_say_how_long_they_last(run: Run) -> None:
    _, out, _ = run("-o", "json", "leases")
    assert [lease["expires_in_s"] for lease in json.loads(out)["leases"]] == [3600, 60, None]


@pytest.mark.parametrize(
    ("what", "subnets"),
    [
        pytest.param("n1", ["10.244.1.0/24"], id="name"),
        pytest.param("id-1", ["10.244.1.0/24"], id="id"),
        pytest.param("192.0.2.2", ["10.244.2.0/24"], id="address of a flannel node"),
        pytest.param("10.244.2.0/24", ["10.244.2.0/24"], id="subnet"),
        pytest.param("10.244.2.0-24", ["10.244.2.0/24"], id="lease key"),
        pytest.param("10.244.1.77", ["10.244.1.0/24"], id="address of a pod"),
        pytest.param("10.244.0.0/22", ["10.244.1.0/24", "10.244.2.0/24"], id="wider subnet"),
        pytest.param("n3", ["10.244.10.0/24"], id="reservation"),
        pytest.param("10.244.9.9", [], id="address that nobody holds"),
        pytest.param("", [], id="nothing"),
        pytest.param("no/such", [], id="neither name nor subnet"),
    ],
)
def test_show_resolves(run: Run, what: str, subnets: list[str]) -> None:
    status, out, err = run("leases", "show", what, "-o", "json")
    assert [lease["subnet"] for lease in json.loads(out)["leases"]] == subnets
    assert status == (0 if subnets else 1)
    assert err == ("" if subnets else f"overlayctl: nobody holds {what!r}\n")


def test_reserve_and_release(run: Run, store: MemoryLeaseStore) -> None:
    assert run("leases", "reserve", "10.244.5.0/24", "--node", "n5")[:2] == (
        0,
        "reserved  10.244.5.0/24 (n5)\n",
    )
    assert run("leases", "reserve", "10.244.1.0/24")[1] == "made permanent  10.244.1.0/24 (n1)\n"
    assert run("leases", "release", "n5")[:2] == (0, "released  10.244.5.0/24 (n5)\n")
    assert "10.244.5.0-24" not in store.view().leases


def test_release_does_not_take_a_pods_address_for_its_node(run: Run) -> None:
    assert run("leases", "release", "10.244.1.77")[0] == 1


def test_flags_stand_before_and_after_the_command(run: Run) -> None:
    before, after = run("-o", "yaml", "network", "show"), run("network", "show", "-o", "yaml")
    assert before == after
    assert yaml.safe_load(before[1])["Backend"] == {"Type": "vxlan", "VNI": 7}
    assert run("-o", "json", "network", "show", "-o", "yaml") == after
    assert run("network", "show", OVERLAYCTL_OUTPUT="yaml") == after


def test_what_show_prints_can_be_written_again(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    file.write_text(run("network", "show", "-o", "json")[1])
    assert run("network", "init", str(file))[0] == 0


def test_etcd_flags_win_over_variables() -> None:
    seen: list[EtcdConfig] = []

    def open_store(config: StoreConfig) -> MemoryLeaseStore:
        assert isinstance(config, EtcdConfig)
        seen.append(config)
        return MemoryLeaseStore()

    environment = {
        "OVERLAYCTL_ETCD_ENDPOINTS": "http://a:1,http://b:2",
        "OVERLAYCTL_ETCD_PREFIX": "/variable",
        "OVERLAYCTL_ETCD_USERNAME": "u",
        "OVERLAYCTL_ETCD_PASSWORD": "p",
    }
    main(["leases", "--etcd-prefix", "/flag"], environment=environment, open_store=open_store)
    assert seen == [EtcdConfig(("http://a:1", "http://b:2"), "/flag", username="u", password="p")]


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        pytest.param(["bogus"], 2, "invalid choice: 'bogus'", id="no such command"),
        pytest.param([], 2, "COMMAND", id="no command"),
        pytest.param(["leases", "show"], 2, "NODE|SUBNET|IP", id="argument missing"),
        pytest.param(["leases", "-o", "xml"], 2, "use table, json, yaml", id="no such form"),
        pytest.param(["leases", "reserve", "10.244.5.1/24"], 2, "host bits set", id="host bits"),
        pytest.param(["leases", "reserve", "10.244.5.0/24"], 2, "name the node", id="for nobody"),
        pytest.param(
            ["leases", "reserve", "10.244.2.0/24", "--node", "n9"], 1, "release that", id="taken"
        ),
        pytest.param(
            ["leases", "reserve", "10.9.0.0/24", "--node", "n"], 2, "outside", id="outside"
        ),
        pytest.param(["leases", "release", "n9"], 1, "nobody holds 'n9'", id="not held"),
        pytest.param(["network", "init", "/no/such"], 2, "No such file", id="no file"),
        pytest.param(["leases", "--etcd-prefix", "x"], 2, "--etcd-prefix 'x'", id="prefix"),
        pytest.param(["leases", "--etcd-endpoints", ""], 2, "is empty", id="no endpoint"),
        pytest.param(["leases", "--etcd-certfile", "c"], 2, "go together", id="half a certificate"),
        pytest.param(["leases", "--etcd-password", "p"], 2, "--etcd-username", id="password alone"),
        pytest.param(["status", "--socket", "/no/such"], 3, "is overlayd running", id="no agent"),
    ],
)
def test_bad_input_gets_one_line(run: Run, argv: list[str], status: int, text: str) -> None:
    got, _out, err = run(*argv)
    assert got == status
    assert err.startswith("overlayctl: ")
    assert err.count("\n") == 1
    assert text in err


def test_help_ends_with_0(run: Run) -> None:
    status, out, _ = run("leases", "--help")
    assert status == 0
    assert "--etcd-password" not in out  # said once, by `overlayctl --help`


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "not JSON", id="empty"),
        pytest.param("[]", "write a JSON object", id="no object"),
        pytest.param('{"Network": "10.0.0.0/16", "Netwrk": 1}', "Netwrk 1: unknown key", id="key"),
        pytest.param('{"Network": "10.0.0.1/16"}', "use 10.0.0.0/16", id="host bits"),
        pytest.param('{"Network": "10.0.0.0/30", "SubnetLen": 24}', "widen Network", id="no room"),
        pytest.param(
            '{"Network": "10.0.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}',
            "Backend.VNI 'x'",
            id="type of an option",
        ),
        pytest.param(
            '{"Network": "10.0.0.0/16", "Backend": {"Type": "vxlan", "Port": 70000}}',
            "Backend.Port 70000",
            id="option out of range",
        ),
        pytest.param(
            '{"Network": "10.0.0.0/16", "Backend": {"Type": "udp"}}',
            "Backend.Type 'udp': no such backend",
            id="backend",
        ),
        pytest.param(
            '{"Network": "10.0.0.0/16", "Egress": {"Mode": "iland"}}', "Egress.Mode", id="egress"
        ),
    ],
)
@pytest.mark.parametrize("verb", ["init", "validate"])
def test_bad_network_config_writes_nothing(
    run: Run, store: MemoryLeaseStore, tmp_path: Path, verb: str, text: str, said: str
) -> None:
    file = tmp_path / "network.json"
    file.write_text(text)
    revision = store.view().revision
    status, out, err = run("network", verb, str(file))
    assert (status, out) == (1, "")
    assert said in err
    assert store.view().revision == revision


def test_config_that_breaks_leases_needs_force(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    file.write_text('{"Network": "10.99.0.0/16"}')
    status, _, err = run("network", "init", str(file))
    assert status == 1
    assert "would break live leases" in err
    assert run("network", "init", str(file), "--force")[0] == 0


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), StoreAccessError("password")])
def test_store_that_cannot_be_used_is_3(run: Run, store: MemoryLeaseStore, error: Any) -> None:
    store.outage = error
    for argv in (["leases"], ["network", "show"], ["leases", "watch"]):
        assert run(*argv) == (3, "", f"overlayctl: {error}\n")


def test_network_show_without_a_config(run: Run, store: MemoryLeaseStore) -> None:
    store.put_config(None)
    assert run("network", "show", "--etcd-prefix", "/x") == (
        1,
        "",
        (
            "overlayctl: no network config at /x/config; "
            "write one with `overlayctl network init FILE`\n"
        ),
    )


def test_node_reset_asks_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: PTH123, SIM115 - no terminal
    status, out, err = run("node", "reset")
    assert (status, out) == (2, "")
    assert "nothing removed" in err


def test_node_reset_is_for_root(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert run("node", "reset", "--yes")[0] == 2


def test_fault_of_ours_is_70_and_not_a_finding(
    run: Run, store: MemoryLeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "view", lambda: 1 / 0)
    assert run("leases")[0] == 70
