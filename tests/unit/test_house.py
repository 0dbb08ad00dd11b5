"""The house: packaging, contracts and documents agree with the tree."""

import configparser
import doctest
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from overlay.model.address import FAMILIES
from overlay.model.node import POD_LINK_PREFIX, is_vtep_device, vtep_device

ROOT = Path(__file__).resolve().parents[2]


def read_setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


SETUP = read_setup()
SOURCES = {"overlay": "overlay", "backends/overlay_backends": "overlay_backends",
           "cni/overlay_cni": "overlay_cni"}  # fmt: skip


def words(section: str, key: str) -> list[str]:
    lines = SETUP[section][key].splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def modules() -> list[str]:
    found = []
    for folder, package in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found.append(".".join((package, *(p for p in parts if p != "__init__"))))
    return found


def requirements() -> list[str]:
    extras = SETUP["options.extras_require"]
    return [
        *words("options", "install_requires"),
        *(line for extra in extras for line in words("options.extras_require", extra)),
    ]


def test_packages_in_setup_are_those_in_the_tree() -> None:
    in_tree = {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for folder, package in SOURCES.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(words("options", "packages")) == sorted(in_tree)


@pytest.mark.parametrize("requirement", requirements())
def test_dependency_is_bounded_and_explained(requirement: str) -> None:
    name = re.split(r"[ <>=!~]", requirement, maxsplit=1)[0]
    assert "==" in requirement or (">=" in requirement and "<" in requirement.replace("<=", ""))
    document = (ROOT / "docs" / "dependencies.md").read_text()
    assert re.search(rf"^\| `{re.escape(name)}` ", document, re.MULTILINE), f"{name}: why?"


@pytest.mark.parametrize("requirement", requirements())
def test_dependency_is_locked_with_hashes(requirement: str) -> None:
    name = re.split(r"[ <>=!~]", requirement, maxsplit=1)[0].lower()
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(rf"^{re.escape(name)}==\S+ \\\n +--hash=sha256:", lock, re.MULTILINE)


def test_lock_names_no_index() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("contract", ["layers", "pure", "etcd", "netlink", "cni"])
def test_import_contract_is_there(contract: str) -> None:
    assert SETUP[f"importlinter:contract:{contract}"]["name"]


def test_every_package_is_in_the_layers() -> None:
    layers = set(re.findall(r"[\w.]+", SETUP["importlinter:contract:layers"]["layers"]))
    packages = [p.split(".") for p in words("options", "packages")]
    assert layers == {".".join(p[:2]) for p in packages if p[0] == "overlay" and len(p) > 1}


def test_entry_points_lead_somewhere() -> None:
    for group in SETUP["options.entry_points"]:
        for line in words("options.entry_points", group):
            module, _, name = line.partition("=")[2].strip().partition(":")
            assert hasattr(importlib.import_module(module), name), line


# Who may look at the time of day: for people to read, never to decide by.
WALL_CLOCK = {
    "overlay/agent/events.py",  # when something happened, when a lease was claimed
    "overlay/cli/doctor/facts.py",  # to compare it with etcd's
    "overlay/agent/logs.py",
    "overlay/cli/events.py",  # what happened in the last ten minutes
    "overlay/cli/leases.py",  # when a lease ends
    "overlay/lab/chaos/machine.py",  # to have a clock that is wrong
    "overlay/lab/chaos/table.py",  # when it was measured
    "overlay/store/kube_condition.py",  # since when a node has a network, for people to read
}
TIME_OF_DAY = re.compile(
    r"\btime\.(time|time_ns|localtime|gmtime|ctime|strftime)\b|\bCLOCK_REALTIME\b"
    r"|\bfrom time import (?!monotonic|sleep)|\b(datetime|date)\.(now|utcnow|today|fromtimestamp)\b"
)


def test_nothing_decides_by_the_time_of_day() -> None:
    """The clock of a node may jump by years, either way."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("overlay", "backends", "cni")
        for path in (ROOT / folder).rglob("*.py")
        if TIME_OF_DAY.search(path.read_text())
    }
    assert found == WALL_CLOCK


@pytest.mark.parametrize(
    "target",
    [
        *("setup", "demo", "test", "lint", "fuzz", "bench", "chaos", "faults", "man", "docs"),
        *("clean", "help"),
    ],
)
def test_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("module", modules())
def test_module_says_what_it_is_and_its_examples_hold(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert doctest.testmod(loaded).failed == 0


def matched_by_manifests() -> dict[str, list[str]]:
    """Return the patterns of device names in each file that keeps a service off our devices."""
    folder = ROOT / "manifests"
    link = (folder / "systemd/10-overlay.link").read_text()
    network = (folder / "systemd/10-overlay.network").read_text()
    manager = (folder / "NetworkManager/overlay.conf").read_text()
    return {
        "udev": re.findall(r"^OriginalName=(.*)", link, re.MULTILINE)[0].split(),
        "networkd": re.findall(r"^Name=(.*)", network, re.MULTILINE)[0].split(),
        "NetworkManager": re.findall(r"interface-name:([^;\s]+)", manager),
    }


@pytest.mark.parametrize(("service", "patterns"), matched_by_manifests().items())
def test_manifests_match_every_device_of_ours_and_no_other(
    service: str, patterns: list[str]
) -> None:
    ours = [vtep_device(vni, family) for vni in (1, 4096, 16777215) for family in FAMILIES]
    for name in (*ours, f"{POD_LINK_PREFIX}0123456789a"):
        assert any(fnmatch(name, pattern) for pattern in patterns), (service, name)
        assert name.startswith(POD_LINK_PREFIX) or is_vtep_device(name)
    for name in ("eth0", "overlay", "flannel.1", "veth1", "overlay0"):
        assert not any(fnmatch(name, pattern) for pattern in patterns), (service, name)


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
             ROOT / "manifests" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target
