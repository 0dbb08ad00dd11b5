"""What must hold for any bytes: CNI requests, netlink datagrams, what etcd holds, what nft prints.

Each target takes bytes and raises AssertionError, or whatever escapes a parser.
"""

import json
import socket
from collections.abc import Callable, Mapping
from functools import cache, partial
from ipaddress import ip_address
from typing import Final, TypeVar

from overlay.agent.cni_config import demand, wanted_mode, wanted_mtu
from overlay.agent.cni_request import (
    BAD_CONFIG,
    VERSIONS,
    CniError,
    expected_by,
    parse_request,
    valid_attachments,
    version_for_errors,
    wanted_addresses,
    wanted_mac,
)
from overlay.agent.cni_result import format_error, format_result
from overlay.agent.cni_wire import Opening, WireError, read_request
from overlay.kernel import parse
from overlay.kernel.links import parse_link
from overlay.kernel.monitor import Monitor
from overlay.kernel.nft_notices import RulesetNotices
from overlay.kernel.nft_table import _parse_listing
from overlay.kernel.notices import OVERFLOW, SYSCTL, UNDERLAY, Change, RulesetChange
from overlay.kernel.wire import MessageError, split
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.document import is_plain
from overlay.model.errors import ConfigError, LeaseFormatError
from overlay.model.lease import format_attributes, parse_attributes, parse_lease
from overlay.model.network import parse_network_config
from overlay.model.subnet import parse_subnet, parse_subnet_key
from overlay.policy.listing import parse_listing

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

_ATTACHED: Final = Attachment(
    AttachmentKey("fabric", "c1", "eth0"), "/run/netns/pod", (ip_address("10.1.0.2"),), "opod1"
)
_SUBNET: Final = parse_subnet("10.1.0.0/24,fd00::/64")
_MOST_WORDS: Final = 1000  # characters of an error: a person reads it
_MOST: Final = 64 * 1024  # bytes; more do not fit into a socket that nobody reads


def judge_request(variables: Mapping[str, str], text: bytes) -> None:
    """Assert that a request is refused in few words with a code, or all of it can be used."""
    assert version_for_errors(text) in VERSIONS
    request = _outcome(lambda: parse_request(variables, text))
    if isinstance(request, CniError):
        assert 0 < request.code < 50
        assert len(str(request)) < 200
        json.loads(format_error(request, version_for_errors(text)))
        return
    assert isinstance(request.is_ipam, bool)
    for name in ("container", "network", "interface"):
        assert is_plain(getattr(request.key, name))
    for function in (
        wanted_addresses,
        wanted_mac,
        expected_by,
        lambda r: valid_attachments(r.config),
        wanted_mode,
        lambda r: wanted_mtu(r, 1430),
        lambda r: demand(r, _SUBNET),
    ):
        found = _outcome(partial(function, request))
        assert not isinstance(found, CniError) or found.code == BAD_CONFIG
    answer = _outcome(lambda: format_result(request, _ATTACHED, _SUBNET))
    if isinstance(answer, bytes):
        json.loads(answer, parse_constant=_no_json)  # a runtime reads no NaN
    else:
        assert answer.code == BAD_CONFIG


def cni(data: bytes) -> None:
    """Judge what a client of the agent's socket may send."""
    data = data[:_MOST]
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        try:
            variables, text, netns = read_request(far, Opening())
        except WireError:
            return
    assert netns is None
    assert len(text) + sum(map(len, variables)) <= len(data) * 4  # \\xff for one byte
    judge_request(variables, text)


def netlink(data: bytes) -> None:
    """Judge what a netlink socket may be told."""
    monitor = _monitor()
    for notice in monitor._parse(data):
        if isinstance(notice, str):
            assert notice in {OVERFLOW, SYSCTL, UNDERLAY}
        else:
            assert isinstance(notice, Change)
            assert notice.verb in {"set", "del"}
            assert notice.item is None or notice.item.key == notice.key
            hash(notice.key)
    monitor._names.clear()
    try:
        parts = list(split(data))
    except MessageError:
        return
    for _kind, _flags, _sequence, buffer, start, end in parts:
        assert 16 <= start <= end <= len(data)
        for read in (parse.route_way, parse.neighbor_address, parse_link):
            try:
                read(buffer, start, end)
            except MessageError:
                continue


def lease(data: bytes) -> None:
    """Judge what may stand under ``subnets/``: the key's last part, a line's end, the value."""
    key, _, value = data.partition(b"\n")
    found = _parsed(lambda: parse_lease(key.decode(errors="replace"), value), LeaseFormatError)
    if isinstance(found, LeaseFormatError):
        assert len(str(found)) < _MOST_WORDS
        return
    written = format_attributes(found.attributes)
    again = parse_attributes(found.subnet.key, written)
    assert format_attributes(again) == written, "what is written over changes nothing"
    assert parse_subnet_key(found.subnet.key) == found.subnet


def config(data: bytes) -> None:
    """Judge what may stand under ``config``."""
    found = _parsed(lambda: parse_network_config(data), ConfigError)
    if isinstance(found, ConfigError):
        assert len(str(found)) < _MOST_WORDS
        return
    assert found.families
    for family in found.families:
        span = found.ranges[family]
        assert span.subnet(0).prefixlen <= span.network.max_prefixlen


def nft(data: bytes) -> None:
    """Judge what nft prints, as text and as JSON, and what the kernel tells of rules."""
    text = data.decode(errors="replace")
    static, elements = _parse_listing(text)
    assert len(static) <= len(text)
    assert all(isinstance(each, str) for found in elements.values() for each in found)
    _parsed(lambda: parse_listing(text), ValueError)
    for notice in RulesetNotices().read(data):
        assert notice == OVERFLOW or isinstance(notice, RulesetChange)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "cni": cni,
    "netlink": netlink,
    "lease": lease,
    "config": config,
    "nft": nft,
}


def _outcome(function: Callable[[], T]) -> T | CniError:
    try:
        return function()
    except CniError as exc:
        return exc


def _parsed(function: Callable[[], T], kind: type[E]) -> T | E:
    try:
        return function()
    except kind as exc:
        return exc


def _no_json(word: str) -> None:
    msg = f"{word} in an answer"
    raise AssertionError(msg)


@cache
def _monitor() -> Monitor:
    return Monitor()
