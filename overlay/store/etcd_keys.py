"""Reading keys of etcd: pages at one revision, and what changed since one."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import etcd3.utils

from overlay.store.etcd_connection import EtcdConnection
from overlay.store.etcd_errors import CompactedError, ResyncError
from overlay.store.etcd_table import CHALLENGES, FABRIC_KEY, SUBNETS, KeyValue, Listing

# Keys a page: 25,000 leases in one answer exceed gRPC's 4 MiB, and one page
# at a time keeps the peak of memory low.
PAGE: Final = 500
_LISTINGS: Final = 3  # begun, before it is given up

Answer: TypeAlias = Any  # etcdrpc.RangeResponse, which has no types


def list_all(connection: EtcdConnection, root: str) -> Listing:
    """Return the config and all subnets at one revision.

    A compaction that takes that revision away between two pages, or a store
    that is put back between them, starts it again. Raises CompactedError and
    ResyncError where that happens each time: the pages are of several stores.
    """
    return _again(lambda: _list_once(connection, root))


def list_keys(connection: EtcdConnection, root: str, revision: int) -> tuple[KeyValue, ...]:
    """Return config and subnets as they were at ``revision``, with the values of few.

    Those are the keys without an etcd lease, which no random number tells
    apart. Raises CompactedError when nobody knows any more, and ResyncError
    when the store was put back meanwhile.
    """
    found = _list_once(connection, root, revision).keys
    return tuple(
        each if each.lease_id else _with_value(connection, each, revision) for each in found
    )


def list_prefix(connection: EtcdConnection, prefix: str) -> Listing:
    """Return all keys below ``prefix`` with their values, at one revision.

    It starts again where that revision goes away between two pages. See ``list_all``.
    """
    return _again(lambda: _list_ranges(connection, (prefix_range(prefix),)))


def list_prefix_at(connection: EtcdConnection, prefix: str, revision: int) -> tuple[KeyValue, ...]:
    """Return all keys below ``prefix`` with their values as they were at ``revision``.

    Raises CompactedError when nobody knows any more, and ResyncError when the
    store was put back meanwhile.
    """
    return _list_ranges(connection, (prefix_range(prefix),), revision).keys


@dataclass(frozen=True, slots=True)
class Since:
    """``changed`` has the subnet keys written since a revision, without their values.

    ``count`` is how many there are in all, ``revision`` the store's own.
    """

    changed: tuple[KeyValue, ...]
    count: int
    revision: int


def subnets_since(connection: EtcdConnection, root: str, revision: int) -> Since:
    """Return what was written below ``subnets/`` since; what was deleted shows in the count."""
    start, end = prefix_range(f"{root}{SUBNETS}")
    answer = connection.read(
        lambda client: client.get_range_response(
            start, end, min_mod_revision=revision + 1, keys_only=True
        )
    )
    changed = tuple(key_value(kv) for kv in answer.kvs)
    return Since(changed, int(answer.count), int(answer.header.revision))


def read_key(connection: EtcdConnection, key: bytes) -> KeyValue | None:
    """Return one key as it is now, or None."""
    answer = connection.read(lambda client: client.get_response(key))
    return key_value(answer.kvs[0]) if answer.kvs else None


def _with_value(connection: EtcdConnection, found: KeyValue, revision: int) -> KeyValue:
    answer = connection.read(lambda client: client.get_response(found.key, revision=revision))
    if not answer.kvs:
        msg = f"etcd was put back while revision {revision} was read"
        raise ResyncError(msg)
    return key_value(answer.kvs[0])


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """Return first key and end of the range of all keys that start with ``prefix``."""
    key = prefix.encode()
    return key, bytes(etcd3.utils.prefix_range_end(key))


def key_value(found: Any) -> KeyValue:
    """Return what one of etcd's own key-value messages says."""
    return KeyValue(
        key=bytes(found.key),
        value=bytes(found.value),
        create_revision=int(found.create_revision),
        mod_revision=int(found.mod_revision),
        lease_id=int(found.lease),
    )


def _again(listing: Callable[[], Listing]) -> Listing:
    for _ in range(_LISTINGS - 1):
        with contextlib.suppress(CompactedError, ResyncError):
            return listing()
    return listing()


def _list_once(connection: EtcdConnection, root: str, at: int | None = None) -> Listing:
    """Return everything at one revision; at an older one, ``at``, without values."""
    # Challenges, config and the fabric's keys are neighbors in etcd's order: one question for all.
    _, keys_end = prefix_range(f"{root}{FABRIC_KEY}")
    challenges, _ = prefix_range(f"{root}{CHALLENGES}")
    ranges = ((challenges, keys_end), prefix_range(f"{root}{SUBNETS}"))
    return _list_ranges(connection, ranges, at, keys_only=at is not None)


def _list_ranges(
    connection: EtcdConnection,
    ranges: Iterable[tuple[bytes, bytes]],
    at: int | None = None,
    *,
    keys_only: bool = False,
) -> Listing:
    """Return the keys of some ranges, from the first to before the last, at one revision."""
    keys: list[KeyValue] = []
    revision, cluster_id = at, 0  # the first answer's pin all later ones
    for first, end in ranges:
        start = first
        while True:
            answer = _page(connection, start, end, revision, keys_only=keys_only)
            seen, cluster = int(answer.header.revision), int(answer.header.cluster_id)
            revision, cluster_id = revision or seen, cluster_id or cluster
            if cluster != cluster_id or seen < revision:
                msg = f"etcd was put back while revision {revision} was read"
                raise ResyncError(msg)
            keys += [key_value(kv) for kv in answer.kvs]
            if not answer.more or not answer.kvs:
                break
            start = bytes(answer.kvs[-1].key) + b"\0"
    return Listing(revision or 0, cluster_id, tuple(keys))


def _page(
    connection: EtcdConnection,
    start: bytes,
    end: bytes | None,
    revision: int | None,
    *,
    keys_only: bool,
) -> Answer:
    return connection.read(
        lambda client: client.get_response(
            start, range_end=end, limit=PAGE, revision=revision, keys_only=keys_only
        )
    )
