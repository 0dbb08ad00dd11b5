"""By what a table of leases knows the history that it was made of."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.store.etcd_table import KeyValue, LeaseReader, LeaseTable, Listing

ROOT = "/test/"
CONFIG = KeyValue(b"/test/config", b'{"Network":"10.244.0.0/16"}', 3, 5)
LEASE = KeyValue(b"/test/subnets/10.244.1.0-24", b'{"PublicIP":"192.0.2.1"}', 4, 6, lease_id=77)


@pytest.mark.parametrize(
    ("keys", "is_same"),
    [
        pytest.param((CONFIG, replace(LEASE, value=b"")), True, id="as it was"),
        pytest.param((CONFIG, replace(LEASE, lease_id=78)), False, id="another etcd lease"),
        pytest.param((CONFIG, replace(LEASE, mod_revision=7)), False, id="another revision"),
        pytest.param((replace(CONFIG, value=b"{}"), LEASE), False, id="another config"),
        pytest.param((CONFIG,), False, id="one less"),
    ],
)
def test_history_is_known_by_revisions_and_what_no_chance_repeats(
    keys: tuple[KeyValue, ...], is_same: bool
) -> None:
    table = LeaseTable(LeaseReader(ROOT))
    table.replace(Listing(6, 1, (CONFIG, LEASE)))
    assert table.is_made_of(keys) is is_same


READABLE = b'{"PublicIP":"192.0.2.%d","BackendType":"vxlan"}'
histories = st.lists(
    st.tuples(
        st.integers(1, 4),  # which key
        st.sampled_from([READABLE % 1, READABLE % 2, b"{", None]),
        st.sampled_from([0, 77, 78]),  # the etcd lease
        st.booleans(),  # it is made anew
    ),
    max_size=12,
)


@given(histories, st.integers(0, 12), histories)
def test_table_knows_what_it_is_made_of_whatever_came_before(
    history: list[tuple[int, bytes | None, int, bool]],
    listed_at: int,
    other: list[tuple[int, bytes | None, int, bool]],
) -> None:
    table, held = LeaseTable(LeaseReader(ROOT)), dict[bytes, KeyValue]()
    for event in told(history):
        if event.mod_revision == listed_at:
            table.replace(Listing(listed_at, 1, tuple(held.values())))
        table.apply([event])
        held.pop(event.key, None)
        if event.value is not None:
            held[event.key] = event
    assert table.is_made_of(held.values())
    others = {event.key: event for event in told(other) if event.value is not None}
    assert table.is_made_of(others.values()) == (seen(held) == seen(others))


def told(history: list[tuple[int, bytes | None, int, bool]]) -> list[KeyValue]:
    """Return the events of a history; the first of them has revision 1."""
    made: dict[int, int] = {}
    events = []
    for revision, (number, value, lease_id, is_anew) in enumerate(history, 1):
        created = revision if is_anew else made.get(number, revision)
        made[number] = created
        key = f"{ROOT}subnets/10.244.{number}.0-24".encode()
        events.append(KeyValue(key, value, created, revision, lease_id))
        if value is None:
            del made[number]
    return events


def seen(held: Mapping[bytes, KeyValue]) -> dict[bytes, tuple[int, int, int, bytes]]:
    """Return what tells one history from another, as it was defined first."""
    values = {key: b"" if each.lease_id else each.value or b"" for key, each in held.items()}
    return {
        key: (each.create_revision, each.mod_revision, each.lease_id, values[key])
        for key, each in held.items()
    }
