"""What nodes cost etcd: a listing each when all of them start anew, an event for each that watches.

Processor seconds are those of etcd alone. Watchers share ten gRPC streams of a
process of its own, as etcd's own client has them; nodes have a connection each,
which costs more. Messages: etcd's ``rpc.proto``, WatchRequest, by hand.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Final

from bench import floors, peers
from bench.bed import Bed, bed
from bench.options import Options
from bench.series import series
from bench.table import Table
from bench.usage import usage
from overlay.lab import netns

_STREAMS: Final = 10
_PAUSE_S: Final = 0.02  # between events: etcd puts what comes at once into one message
_LISTED: Final = ("leases listed", "etcd's CPU of a listing ms", "a node alone s")
_WATCHED: Final = (
    *("watchers", "etcd's CPU of an event ms", "of it for a watcher us"),
    *("the last one told ms, p50 / p99", "etcd's memory MiB"),
)


def tables(options: Options) -> Iterator[Table]:
    """Return a table of listings and one of events."""
    sizes = options.pick((100,), (1_000, 5_000, 20_000), (1_000, 5_000, 20_000))
    watchers = options.pick((1, 10), (1, 100, 1_000), (1, 100, 1_000, 5_000))
    times = options.pick(2, 10, 20)
    events = options.pick(3, 100, 200)
    with bed(are_leases_own=options.are_leases_own) as test:
        yield _listings(test, sizes, times)
        found = [_events(test, count, events) for count in watchers]
    least = found[0]
    rows = []
    for each in found:
        told = series(each["told_s"]).tail(1000)
        share = (each["cpu_s"] - least["cpu_s"]) / max(1, each["watchers"] - least["watchers"])
        cost = f"{1e6 * share:.0f}" if each is not least else "-"
        cells = (f"{1000 * each['cpu_s']:.2f}", cost, told, f"{each['rss_mib']:.0f}")
        rows.append((f"{each['watchers']:,}", *cells))
    yield Table(_WATCHED, tuple(rows), tuple(found))


def _listings(test: Bed, sizes: Sequence[int], times: int) -> Table:
    rows, records = [], []
    with test.node() as node:
        for size in sizes:
            test.write(peers.CONFIG, size)
            before = usage(test.etcd_pid).cpu_s
            alone = series([floors.listing_s(test, node) for _ in range(times)])
            spent = (usage(test.etcd_pid).cpu_s - before) / times
            rows.append((f"{size:,}", f"{1000 * spent:.1f}", alone.spread(1, 3)))
            records.append({"leases": size, "etcd_cpu_s": spent, "alone_s": alone.samples})
    return Table(_LISTED, tuple(rows), tuple(records))


def _events(test: Bed, watchers: int, events: int) -> Mapping[str, Any]:
    command = [*netns.command_prefix(test.namespace), sys.executable, "-m", "bench.watchers"]
    command += [test.endpoint().removeprefix("http://"), str(watchers)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            return _put_and_wait(test, child, watchers, events)
        finally:
            child.kill()


def _put_and_wait(
    test: Bed, child: "subprocess.Popen[str]", watchers: int, events: int
) -> Mapping[str, Any]:
    if child.stdout is None or not child.stdout.readline():
        raise RuntimeError("the watchers do not come up")
    told = []
    before = usage(test.etcd_pid).cpu_s
    for number in range(events):
        time.sleep(_PAUSE_S)
        started = time.perf_counter()
        test.put(test.pairs([number]))
        if not child.stdout.readline():
            raise RuntimeError("the watchers ended")
        told.append(time.perf_counter() - started)
    after = usage(test.etcd_pid)
    spent = (after.cpu_s - before) / events
    return {"watchers": watchers, "cpu_s": spent, "rss_mib": after.rss_mib, "told_s": told}


def _watch(target: str, watchers: int) -> None:
    """Run in the child: say a line when all watch, and one when all were told of an event."""
    import grpc

    channel = grpc.insecure_channel(target)
    watch = channel.stream_stream("/etcdserverpb.Watch/Watch")
    done: SimpleQueue[None] = SimpleQueue()
    streams = min(_STREAMS, watchers)
    for number in range(streams):
        count = len(range(number, watchers, streams))
        work = (watch, count, lambda: done.put(None))
        threading.Thread(target=_follow, args=work, daemon=True).start()
    while True:
        for _ in range(streams):
            done.get()
        print("told", flush=True)


def _follow(watch: Any, count: int, done: Callable[[], None]) -> None:
    """Have ``count`` watchers on one stream; call ``done`` whenever all of them got a message."""
    prefix = f"{peers.PREFIX}/subnets/".encode()
    create = _field(1, _field(1, prefix) + _field(2, prefix[:-1] + b"0"))

    def requests() -> Iterator[bytes]:
        for _ in range(count):
            yield create
        threading.Event().wait()  # the stream stays open

    for number, _ in enumerate(watch(requests()), 1):
        if number % count == 0:
            done()


def _field(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field of a message; short ones only."""
    return bytes((number << 3 | 2, len(payload))) + payload


def main(argv: Sequence[str]) -> None:
    """Watch until killed."""
    _watch(argv[0], int(argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
