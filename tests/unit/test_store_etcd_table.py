"""By what a table of leases knows the history that it was made of."""

from dataclasses import replace

import pytest

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
