"""Reading keys of etcd: pages at one revision, and what changed since one."""

from typing import Any, Final, TypeAlias

import etcd3.utils

from overlay.store.etcd_connection import EtcdConnection
from overlay.store.etcd_errors import CompactedError
from overlay.store.etcd_table import CHALLENGES, FABRIC_KEY, SUBNETS, KeyValue, Listing

# Keys a page: 25,000 leases in one answer exceed gRPC's 4 MiB, and one page
# at a time keeps the peak of memory low.
PAGE: Final = 500

Answer: TypeAlias = Any  # etcdrpc.RangeResponse, which has no types


def list_all(connection: EtcdConnection, root: str) -> Listing:
    """Return the config and all subnets at one revision.

    A compaction that takes that revision away between two pages starts it again.
    """
    while True:
        try:
            return _list_once(connection, root)
        except CompactedError:
            continue


def changed_since(connection: EtcdConnection, root: str, revision: int) -> tuple[KeyValue, ...]:
    """Return the subnet keys that were written after ``revision``, without their values."""
    start, end = prefix_range(f"{root}{SUBNETS}")
    answer = connection.read(
        lambda client: client.get_range_response(
            start, end, min_mod_revision=revision + 1, keys_only=True
        )
    )
    return tuple(key_value(kv) for kv in answer.kvs)


def read_key(connection: EtcdConnection, key: bytes) -> KeyValue | None:
    """Return one key as it is now, or None."""
    answer = connection.read(lambda client: client.get_response(key))
    return key_value(answer.kvs[0]) if answer.kvs else None


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


def _list_once(connection: EtcdConnection, root: str) -> Listing:
    keys: list[KeyValue] = []
    revision: int | None = None  # the first answer's pins all later ones
    # Challenges, config and the fabric's keys are neighbors in etcd's order: one question for all.
    _, keys_end = prefix_range(f"{root}{FABRIC_KEY}")
    challenges, _ = prefix_range(f"{root}{CHALLENGES}")
    for first, end in ((challenges, keys_end), prefix_range(f"{root}{SUBNETS}")):
        start = first
        while True:
            answer = _page(connection, start, end, revision)
            revision = int(answer.header.revision) if revision is None else revision
            keys += [key_value(kv) for kv in answer.kvs]
            if not answer.more or not answer.kvs:
                break
            start = bytes(answer.kvs[-1].key) + b"\0"
    return Listing(revision or 0, int(answer.header.cluster_id), tuple(keys))


def _page(
    connection: EtcdConnection, start: bytes, end: bytes | None, revision: int | None
) -> Answer:
    return connection.read(
        lambda client: client.get_response(start, range_end=end, limit=PAGE, revision=revision)
    )
