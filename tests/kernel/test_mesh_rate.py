"""How many datagrams an agent sends to measure very many peers: counted on the wire."""

import re
import threading
import time

import pytest

from overlay.agent.mesh import Mesh
from overlay.agent.mesh_flags import MeshFlags
from overlay.agent.status import Status
from overlay.mesh.sample import MOST_PEERS
from overlay.model.fabric_key import FabricKeys
from overlay.model.lease import LeaseView
from overlay.model.node import NodeIdentity
from overlay.store.memory import MemoryLeaseStore
from tests.kernel.netns import Netns, eventually
from tests.unit import worlds

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PORT = 9471
INTERVAL_S = 1.0
COUNTER = f"""
table inet count {{
	chain out {{ type filter hook output priority 0; udp dport {PORT} counter; }}
}}
"""


def test_probes_a_second_are_bounded_whatever_the_number_of_peers(netns: Netns) -> None:
    site = worlds.site(worlds.V4)
    peers = [worlds.lease(i, families=site.config.families) for i in range(2, 250)]
    assert len(peers) > 2 * MOST_PEERS
    for network in ("192.0.2.0/24", "10.244.0.0/16"):
        netns.ip("route", "add", "local", network, "dev", "lo")
    netns.nft("-f", "-", stdin=COUNTER)

    def sent() -> int:
        shown = netns.nft("list", "table", "inet", "count")
        found = re.search(r"counter packets (\d+)", shown)
        assert found is not None
        return int(found[1])

    status = Status()
    view = LeaseView(1, leases=worlds.by_key(*peers), fabric_keys=FabricKeys(b"k" * 32))
    status.update(site=site, view=view)
    flags = MeshFlags(PORT, INTERVAL_S, mtu_interval_s=0)
    mesh = Mesh(flags, NodeIdentity("n1", "node1"), status, MemoryLeaseStore())
    stop = threading.Event()
    # A round and a tenth of it may fall into the time that is looked at, beside whole ones.
    began = time.monotonic()
    thread = threading.Thread(target=lambda: netns.call(lambda: mesh.run(stop)))
    thread.start()
    try:
        a_round = 2 * MOST_PEERS
        eventually(lambda: sent() >= 3 * a_round, timeout_s=30, what="three rounds of probes")
    finally:
        stop.set()
        thread.join()
    took_s = time.monotonic() - began
    assert mesh.error is None
    assert len(mesh.measured) == MOST_PEERS
    assert sent() <= a_round * (took_s / INTERVAL_S + 1.1)
