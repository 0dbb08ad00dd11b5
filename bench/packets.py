"""What a datagram costs in processor time, from the one who sends it to where it is dropped.

What stands between is in the sender's time, on whatever node: veth and VXLAN devices hand a packet
on in the same call, or in the softirq behind it. With RPS another processor does it, unseen.
"""

import socket
import subprocess
import sys
from typing import Final

from bench.iperf import Path
from overlay.lab import netns

_SINK: Final = 8080
_ANSWER_S: Final = 30.0
_SENDER: Final = """
import socket, sys, time
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.connect((sys.argv[1], 8080))
count = int(sys.argv[2])
if sys.argv[3] == "answered":
    ask.send(b"hello")
    ask.recv(16)
began = time.process_time()
for _ in range(count):
    ask.send(b"x" * 64)
print((time.process_time() - began) / count)
"""


def cost_s(path: Path, packets: int, *, is_answered: bool = True) -> float:
    """Return the processor seconds of one datagram to somebody who does not read it.

    Of a connection that was answered once, or of one that conntrack holds for
    new, so that each packet is judged by all chains.
    """

    def listening() -> socket.socket:
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind((path.address, _SINK))
        return sink

    kind = "answered" if is_answered else "unanswered"
    command = [sys.executable, "-c", _SENDER, path.address, str(packets), kind]
    with (
        netns.inside(path.target, listening) as sink,
        netns.inside(path.source, lambda: _started(command)) as sender,
    ):
        if is_answered:
            sink.settimeout(_ANSWER_S)
            word, peer = sink.recvfrom(16)
            sink.sendto(word, peer)
        told, _ = sender.communicate()
    return float(told)


def _started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
