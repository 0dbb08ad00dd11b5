"""What an agent loads in Kubernetes mode and beside it, and what its flags take."""

import subprocess
import sys
from pathlib import Path

import pytest

from overlay.agent.announcement import Announcement
from overlay.agent.flags import parse_flags
from overlay.agent.status import RUNNING, Status
from overlay.model.errors import UsageError
from overlay.store.base import StoreUnavailableError
from overlay.store.kube_config import KubeAccess

_LOADED = """
import sys
from overlay.agent.start import _agent
from overlay.agent.flags import parse_flags
_agent(parse_flags(sys.argv[1:]))
print(*(name for name in ("etcd3", "grpc", "lightkube", "httpx2") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("flags", "loaded"),
    [
        pytest.param(["--kube-subnet-mgr"], ["lightkube", "httpx2"], id="kubernetes"),
        pytest.param([], ["etcd3", "grpc"], id="etcd"),
    ],
)
def test_only_the_client_of_its_own_store_is_loaded(
    tmp_path: Path, flags: list[str], loaded: list[str]
) -> None:
    words = [sys.executable, "-c", _LOADED, *flags, f"--state-dir={tmp_path}", "--node-name=n1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == loaded, done.stderr


def test_flags_are_flannels_with_flannels_defaults() -> None:
    flags = parse_flags(["-kube-subnet-mgr"], {"NODE_NAME": "worker-1"})
    assert flags.kube is not None
    assert flags.kube.is_announced
    access = flags.kube.access
    assert (access.node_name, flags.node.id, flags.node.name) == ("worker-1",) * 3
    assert str(access.net_config_path) == "/etc/kube-flannel/net-conf.json"
    assert access.stem == "flannel.alpha.coreos.com/"
    assert str(access.account_dir) == "/var/run/secrets/kubernetes.io/serviceaccount"
    assert parse_flags([], {"NODE_NAME": "worker-1"}).node.name != "worker-1"


def test_flags_are_variables_too_and_the_node_name_wins_over_the_kubelets() -> None:
    environment = {
        "OVERLAYD_KUBE_SUBNET_MGR": "true",
        "OVERLAYD_NET_CONFIG_PATH": "/etc/overlay/net-conf.json",
        "OVERLAYD_NODE_NAME": "mine",
        "OVERLAYD_SET_NODE_NETWORK_UNAVAILABLE": "false",
        "NODE_NAME": "theirs",
    }
    flags = parse_flags([], environment)
    assert flags.kube is not None
    assert not flags.kube.is_announced
    assert flags.kube.access.node_name == "mine"
    assert "/etc/overlay/net-conf.json does not exist" in flags.no_config


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--kubeconfig-file=/nope", "--kubeconfig-file /nope: there is no such file"),
        ("--kube-api-url=ftp://x", "--kube-api-url 'ftp://x': write a URL"),
        ("--kube-api-url=https://x:99999", "--kube-api-url"),
        ("--kube-annotation-prefix=a/b/c", "--kube-annotation-prefix 'a/b/c'"),
        ("--kube-annotation-prefix=", "--kube-annotation-prefix"),
        ("--net-config-path=relative", "--net-config-path"),
        ("--kube-subnet-mgr=perhaps", "write true or false"),
    ],
)
def test_flag_that_cannot_be_used_is_named(flag: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flags(["--kube-subnet-mgr", flag], {})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "stem"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("example.org/net", "example.org/net-"),
        ("example.org/net-", "example.org/net-"),
        ("example.org/", "example.org/"),
    ],
)
def test_annotations_begin_as_flannel_makes_it_of_the_prefix(prefix: str, stem: str) -> None:
    assert KubeAccess(annotation_prefix=prefix).stem == stem


class _Stop:
    """Ends after so many pauses, and takes no time."""

    def __init__(self, pauses: int) -> None:
        self.left = pauses

    def is_set(self) -> bool:
        return self.left <= 0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.left -= 1
        return self.is_set()


def test_announcement_that_fails_is_tried_again_until_it_is_done() -> None:
    status, stop = Status(), _Stop(100)
    status.update(phase=RUNNING)
    calls = []

    def announce() -> bool:
        calls.append(1)
        if len(calls) < 4:
            raise StoreUnavailableError("not now")
        stop.left = 0
        return True

    announcement = Announcement(announce, status)
    announcement.run(stop)
    assert len(calls) == 4


def test_node_that_lost_its_condition_is_told_again() -> None:
    """Whoever sets it back is not seen; so it is looked at now and then."""
    status, stop = Status(), _Stop(100)
    answers = [True, False, True]

    def announce() -> bool:
        answer = answers.pop(0)
        if not answers:
            stop.left = 0
        return answer

    status.update(phase=RUNNING)
    Announcement(announce, status, again_s=0.0).run(stop)
    assert answers == []
