"""What the fabric would meet far beyond its size: 100,000 leases, entries, watchers.

``simulation`` has one node's decisions, ``tables`` the kernel's part of a node,
``watchers`` etcd's part of all. What follows from it: docs/scale.md.
"""

from collections.abc import Iterator

from bench import simulation, tables, watchers
from bench.options import Options
from bench.table import Table


def run(options: Options) -> Iterator[Table]:
    """Return the tables of all three."""
    yield simulation.table(options)
    yield tables.table(options)
    yield from watchers.tables(options)
