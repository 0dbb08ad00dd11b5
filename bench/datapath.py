"""What stands between a pod and the wire, each part turned on or off in turns.

The agents have ended, so that none puts back what is changed here; what they
made carries the packets. Each round measures things as the agent leaves them,
then every variant; what is compared was taken within the same round.
"""

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from bench import iperf, packets
from bench.bed import DEVICE, bed
from bench.by_hand import by_hand
from bench.fabric import Fabric, fabric
from bench.features import features
from bench.iperf import Path
from bench.options import Options
from bench.pods import Pod, pods
from bench.series import paired, series
from bench.table import Table
from overlay.lab import netns
from overlay.policy.ruleset import TABLE

_TUNNEL: Final = "overlay.1"
_BASE: Final = "as the agent leaves it"
_BY_HAND: Final = "by hand: no table, no rule of routing"
_WIRE: Final = "packets of MTU size on the wire"
_UNTRACKED: Final = """
table inet bench {
	chain pre { type filter hook prerouting priority raw; udp dport 8472 notrack; }
	chain out { type filter hook output priority raw; udp dport 8472 notrack; }
}
"""
_TRACKED: Final = """
table inet bench {
	chain pre { type filter hook prerouting priority 0; ct state invalid counter; }
}
"""
_BARE: Final = "flush ruleset\n"
_MEASURES: Final = {
    "tcp": ("TCP 1 stream Gbit/s", 1e-9, 2),
    "cpu": ("CPU s for a GB", 1, 3),
    "packet": ("CPU of a packet us", 1e6, 2),
    "local": ("of one node's us", 1e6, 2),
}
_COLUMNS: Final = ("what", *(each for title, _, _ in _MEASURES.values() for each in (title, "x")))

Setting = Callable[[], AbstractContextManager[None]]
_as_it_is: Final[Setting] = contextlib.nullcontext
Samples = Mapping[str, list[float]]  # by measure


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to have it: what it is compared with, how it is set, and the paths where it shows."""

    title: str
    base: str
    setting: Setting
    across: Path
    local: Path


def run(options: Options) -> Iterator[Table]:
    """Return one table of our agent's data path; "x" is the median of the rounds' own ratios."""
    seconds = options.pick(0, 1, 2)
    rounds = options.pick(1, 10, 20)
    count = options.pick(1_000, 30_000, 200_000)
    with contextlib.ExitStack() as stack:
        test = stack.enter_context(bed())
        made = stack.enter_context(fabric(options.agents[0], test))
        bridged = [stack.enter_context(pods(options.agents[0], n, 2, "bridge")) for n in made.nodes]
        for running in made.running:
            running.end()
        bare = stack.enter_context(by_hand(test))
        variants = [*_variants(made, bridged), Variant(_BY_HAND, _BASE, _as_it_is, *bare)]
        found: dict[str, dict[str, list[float]]] = {
            each.title: {key: [] for key in _MEASURES} for each in variants
        }
        for _ in range(rounds):
            for variant in variants:
                with variant.setting():
                    for key, value in _once(variant, seconds, count).items():
                        found[variant.title][key].append(value)
    rows = [(each.title, *_cells(found[each.title], found[each.base])) for each in variants]
    records = [{"what": title, **samples} for title, samples in found.items()]
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _once(variant: Variant, seconds: int, count: int) -> Mapping[str, float]:
    stream = iperf.tcp(variant.across, seconds, 1)
    return {
        "tcp": stream.bits_per_s,
        "cpu": stream.cpu_s_per_gb,
        "packet": packets.cost_s(variant.across, count),
        "local": packets.cost_s(variant.local, count),
    }


def _cells(samples: Samples, base: Samples) -> Iterator[str]:
    for key, (_, scale, digits) in _MEASURES.items():
        yield series(samples[key]).spread(scale, digits)
        yield "1" if samples is base else paired(samples[key], base[key]).spread()


def _variants(made: Fabric, bridged: Sequence[Sequence[Pod]]) -> list[Variant]:
    """Return what is measured; of things as they are each comes before what is held against it."""
    spaces = [node.namespace for node in made.nodes]
    ends = {space: _pod_links(space) for space in spaces}
    inner = {pod.namespace: ["eth0"] for each in made.pods for pod in each}
    tunnels, wires = ({space: [name] for space in spaces} for name in (_TUNNEL, DEVICE))
    across, local = made.across, made.local
    here, there = bridged
    bridge = Path("pod to pod", here[0].namespace, there[0].namespace, there[0].address)
    neighbor = Path("pods of one node", here[0].namespace, here[1].namespace, here[1].address)

    def turned(links: Mapping[str, Sequence[str]], **wanted: bool) -> Setting:
        return functools.partial(_turned, links, wanted)

    def filtered(text: str) -> Setting:
        return functools.partial(_filtered, spaces, text)

    cut = turned(wires, tso=False, gso=False)
    settings: list[tuple[str, str, Setting]] = [
        (_BASE, _BASE, _as_it_is),
        ("checksums of the VXLAN device by the kernel", _BASE, turned(tunnels, tx=False)),
        ("no segmentation offload on it", _BASE, turned(tunnels, tso=False, gso=False)),
        ("GRO on the pods' links", _BASE, turned({**ends, **inner}, gro=True)),
        ("tunnel packets not tracked", _BASE, filtered(_UNTRACKED)),
        ("no check of pods' sources", _BASE, filtered(_without("ov_source"))),
        ("no check of tunnel packets", _BASE, filtered(_without("ov_input"))),
        ("no masquerading", _BASE, filtered(_without("ov_postrouting"))),
        ("no table of ours, all tracked", _BASE, filtered(_BARE + _TRACKED)),
        ("no table, nothing tracked", _BASE, filtered(_BARE)),
        ("RPS on the VXLAN device", _BASE, functools.partial(_steered, tunnels)),
        ("RPS on the pods' links", _BASE, functools.partial(_steered, ends)),
        (_WIRE, _WIRE, cut),
        ("these, GRO on the underlay", _WIRE, _both(cut, turned(wires, gro=True))),
        ("these, no GRO on the VXLAN device", _WIRE, _both(cut, turned(tunnels, gro=False))),
    ]
    variants = [Variant(*each, across, local) for each in settings]
    on_bridge = Variant("pods on a bridge", _BASE, _as_it_is, bridge, neighbor)
    return [variants[0], on_bridge, *variants[1:]]


def _pod_links(namespace: str) -> list[str]:
    shown = netns.inside(namespace, lambda: _run(["ip", "-o", "link"]))
    names = [line.split(": ")[1].partition("@")[0] for line in shown.splitlines()]
    return [name for name in names if name.startswith("opod") and name != "opod-bridge"]


def _both(first: Setting, second: Setting) -> Setting:
    @contextlib.contextmanager
    def setting() -> Iterator[None]:
        with first(), second():
            yield

    return setting


@contextlib.contextmanager
def _turned(links: Mapping[str, Sequence[str]], wanted: Mapping[str, bool]) -> Iterator[None]:
    """Have features of the links of each namespace as ``wanted``."""
    with contextlib.ExitStack() as stack:
        for namespace, names in links.items():
            stack.enter_context(features(namespace, names, wanted))
        yield


def _without(chain: str) -> str:
    """Return what takes one of our chains away."""
    return f"flush chain {TABLE} {chain}\ndelete chain {TABLE} {chain}\n"


@contextlib.contextmanager
def _filtered(namespaces: Sequence[str], text: str) -> Iterator[None]:
    """Have nft execute a script in each namespace; afterwards there is the ruleset of before."""
    kept = {}
    for name in namespaces:
        kept[name] = netns.inside(name, lambda: _run(["nft", "list", "ruleset"]))
        netns.inside(name, functools.partial(_nft, text))
    try:
        yield
    finally:
        for name, before in kept.items():
            netns.inside(name, functools.partial(_nft, _BARE + before))


@contextlib.contextmanager
def _steered(links: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Have received packets of the links spread over all cores (Documentation/networking/scaling).

    ``ip netns exec`` mounts the ``/sys`` of the namespace.
    """
    for namespace, names in links.items():
        _steer(namespace, names, (1 << (os.cpu_count() or 1)) - 1)
    try:
        yield
    finally:
        for namespace, names in links.items():
            _steer(namespace, names, 0)


def _steer(namespace: str, names: Sequence[str], cores: int) -> None:
    paths = " ".join(f"/sys/class/net/{name}/queues/rx-0/rps_cpus" for name in names)
    script = f"for file in {paths}; do echo {cores:x} > $file; done"
    _run(["ip", "netns", "exec", namespace, "sh", "-ec", script])


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)
