"""Variables and flags of both programs: flags that can be used, or UsageError in one line."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.agent.flags import Flags, parse_flags
from overlay.cli.main import main
from overlay.model.errors import UsageError
from tests.unit import odd

NAMES = [
    "ETCD_ENDPOINTS", "ETCD_PREFIX", "ETCD_CAFILE", "ETCD_CERTFILE", "ETCD_KEYFILE",
    "ETCD_USERNAME", "ETCD_PASSWORD", "IFACE", "IFACE_REGEX", "IFACE_CAN_REACH", "PUBLIC_IP",
    "PUBLIC_IPV6", "SUBNET_FILE", "SUBNET_LEASE_TTL", "SUBNET_LEASE_RENEW_MARGIN", "NODE_NAME",
    "STATE_DIR", "CNI_SOCKET", "HEALTHZ_IP", "HEALTHZ_PORT", "AUDIT_INTERVAL", "LOG_FORMAT",
    "LOG_LEVEL", "KUBE_SUBNET_MGR", "KUBECONFIG_FILE", "NET_CONFIG_PATH",
]  # fmt: skip
likely = st.sampled_from(
    ["1h30m", "90s", "500ms", "60", "9" * 400 + "d", "0s", "json", "xml", "loud", "debug", "/x",
     "http://127.0.0.1:2379", "http://[::1]:1,https://b:2", "192.0.2.1", "fd00::1", "fe80::1%eth0",
     "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT SIX}0s", "65536", "true", "%(prog)s", "(", "-"]
)  # fmt: skip
variables = st.dictionaries(
    st.sampled_from(NAMES).map("OVERLAYD_{}".format), odd.texts | likely, max_size=4
)
BASE = {"OVERLAYD_NODE_NAME": "n1"}  # a machine without an identity may run this


def check(flags: Flags | UsageError) -> None:
    """Assert that an error is one line, or that nothing else can stumble over the flags."""
    if isinstance(flags, UsageError):
        assert len(str(flags)) < 1000
        return
    assert isinstance(flags, Flags)
    assert 1 <= flags.lease_ttl_s <= 10 * 366 * 86400
    assert 0 <= flags.renew_margin_s <= flags.lease_ttl_s
    assert 0 < flags.audit_interval_s < float("inf")
    assert flags.log_format in {"text", "json"}
    assert flags.log_level in {"debug", "info", "warning"}
    assert 0 <= flags.healthz_port <= 65535
    for path in (flags.subnet_file, flags.state_dir, flags.cni_socket):
        assert path.is_absolute()
        assert b"\0" not in bytes(path)
    for text in (flags.etcd.root, flags.etcd.username or "", flags.node.id, *flags.underlay.iface):
        assert b"\0" not in text.encode()


@given(variables)
@example({"OVERLAYD_SUBNET_LEASE_TTL": "9" * 400 + "d"})
@example({"OVERLAYD_AUDIT_INTERVAL": "9" * 400 + "d"})
@example({"OVERLAYD_SUBNET_LEASE_TTL": "900ms", "OVERLAYD_SUBNET_LEASE_RENEW_MARGIN": "100ms"})
@example({"OVERLAYD_LOG_FORMAT": "xml"})
@example({"OVERLAYD_LOG_LEVEL": "loud"})
@example({"OVERLAYD_SUBNET_FILE": "/\0"})
@example({"OVERLAYD_ETCD_PREFIX": "/\udc80"})
@example({"OVERLAYD_ETCD_USERNAME": "\udc80"})
@example({"OVERLAYD_HEALTHZ_PORT": "\N{SUPERSCRIPT TWO}"})
@example({"OVERLAYD_KUBE_SUBNET_MGR": "%"})
def test_any_variables_are_flags_or_a_usage_error(environment: dict[str, str]) -> None:
    check(odd.outcome(UsageError, lambda: parse_flags([], {**BASE, **environment})))


arguments = st.lists(
    st.sampled_from(NAMES).map(lambda name: "--" + name.lower().replace("_", "-"))
    | odd.texts
    | likely,
    max_size=5,
).filter(lambda words: not {"-h", "--help", "--version", "-help", "-version"} & set(words))


@given(arguments)
@example(["--subnet-lease-ttl", "9" * 400 + "d"])
@example(["--node-name", "\udc80"])
@example(["-etcd-prefix=/a\0"])
@example(["9" * 400 + "d"] * 3)
def test_any_arguments_are_flags_or_a_usage_error(argv: list[str]) -> None:
    check(odd.outcome(UsageError, lambda: parse_flags(argv, BASE)))


def test_a_misspelled_flag_does_not_tell_its_secret() -> None:
    with pytest.raises(UsageError, match="--etcd-pasword") as caught:
        parse_flags(["--etcd-pasword", "hush", "--etcd-passwort=hush"], BASE)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SUBNET_LEASE_TTL", "900ms", "at least 1 s"),
        ("SUBNET_LEASE_TTL", "99999999d", "ten years"),
        ("AUDIT_INTERVAL", "9" * 400 + "d", "ten years"),
        ("LOG_FORMAT", "xml", "--log-format 'xml': use text, json"),
        ("LOG_LEVEL", "loud", "--log-level 'loud': use debug, info, warning"),
        ("STATE_DIR", "/a\0b", "NUL"),
        ("ETCD_PASSWORD", "\udcff", "not UTF-8"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str, words: str) -> None:
    environment = {"OVERLAYD_SUBNET_LEASE_RENEW_MARGIN": "100ms", f"OVERLAYD_{name}": value}
    with pytest.raises(UsageError, match=words) as caught:
        parse_flags([], {**BASE, **environment})
    assert value not in str(caught.value) or len(value) < 10


def test_password_with_odd_bytes_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="argument 2: not UTF-8") as caught:
        parse_flags(["--etcd-password", "secret\udc80"], BASE)
    assert "secret" not in str(caught.value)


ctl = ["OUTPUT", "SOCKET", *(name for name in NAMES if name.startswith("ETCD_"))]


@given(
    st.dictionaries(
        st.sampled_from(ctl).map("OVERLAYCTL_{}".format), odd.texts | likely, max_size=3
    )
)
@example({"OVERLAYCTL_SOCKET": "/a\0b"})
@example({"OVERLAYCTL_SOCKET": "/a\ud800b"})
@example({"OVERLAYCTL_SOCKET": "/" + "x" * 200})
def test_any_variables_of_overlayctl_end_in_a_status(environment: dict[str, str]) -> None:
    """2 for what cannot be used, 3 for an agent that is not there; 70 would be a fault of ours."""
    path = str(Path("/nonexistent/agent.sock"))
    assert main(["status"], environment={"OVERLAYCTL_SOCKET": path, **environment}) in {2, 3}
