"""The chaos suite's packet stream: what it counts as lost, and where."""

import pytest

from overlay.lab.chaos.stream import End, Stream
from tests.kernel.netns import Netns, eventually

pytestmark = pytest.mark.kernel

DROP = """\
table ip stream {
	chain in {
		type filter hook input priority 0;
		ip daddr 127.0.0.1 drop
	}
}
"""


def test_packets_that_the_kernel_drops_are_lost_on_the_way_and_no_others(netns: Netns) -> None:
    with Stream(End(netns.name, "127.0.0.1"), End(netns.name, "127.0.0.2")) as stream:
        begun = stream.mark()
        eventually(lambda: stream.mark().numbers[0] > begun.numbers[0] + 50)
        whole = stream.mark()
        netns.nft("-f", "-", stdin=DROP)
        dropping = stream.mark()
        eventually(lambda: stream.mark().numbers[0] > dropping.numbers[0] + 50)
        end = stream.mark()
        clean, lossy = stream.lost(begun, whole), stream.lost(dropping, end)
    assert (clean.on_the_way, clean.by_sockets) == (0, 0)
    assert lossy.on_the_way == end.numbers[1] - dropping.numbers[1], "one of the two directions"
    assert lossy.by_sockets == 0
