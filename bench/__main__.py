"""``python -m bench [NAME ...]``: run the named benches, or all of them."""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.options import AgentCommand, Effort, Options, distinct
from bench.table import Table, rewritten
from overlay.lab import signals
from overlay.model.errors import OverlayError

BENCHES: Final[Mapping[str, str]] = {
    "cold-join": "from start to every entry of N peers in the kernel",
    "changes": "1,000 leases more on top of 1,000, and those removed again",
    "event": "one lease put until its route is there",
    "start": "from exec to the first request that etcd gets",
    "restart": "killed and started again, until all is checked; packets lost",
    "idle": "memory and CPU of an agent that has nothing to do",
    "cni": "ADD and DEL, one by one and ten at a time; 110 pods on a node",
    "throughput": "pod to pod against node to node",
    "datapath": "what stands between pod and wire, each part turned on or off",
    "nft": "the packet filter compiled and applied",
    "policy": "network policies of a cluster: compiled, applied, changed; traffic with and without",
    "kube": "N nodes of Kubernetes listed and watched: time, CPU, memory",
    "kube-policy": "policies and N pods of Kubernetes listed and watched: time, CPU, memory",
    "container": "the agent's container on a node of N: what requests and limits are made of",
    "commands": "every command of overlayctl beside an agent with 1,000 peers",
    "scale": "100,000 leases simulated, entries in the kernel, watchers of etcd",
    "growth": "join time, CPU, memory and etcd requests up to 20,000 peers; a picture",
}
RESULTS: Final = Path(__file__).resolve().parent / "results"
# The picture takes minutes, and the image is built; both when a document is made anew.
_BY_NAME_ONLY: Final = frozenset({"container", "growth"})


def parse(argv: Sequence[str]) -> tuple[list[str], Options, argparse.Namespace]:
    """Return the benches named, the options, and where results go. Ends the program on misuse."""
    listed = "\n".join(f"  {name:<12} {text}" for name, text in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Without a name all but container and growth run:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="the least work there is to see")
    effort.add_argument("--full", action="store_true", help="with 20,000 peers, more rounds")
    parser.add_argument(
        "--agent",
        action="append",
        default=[],
        metavar="COMMAND",
        help="measure another agent with flannel's flags beside ours, such as 'flanneld -ip-masq'",
    )
    parser.add_argument("--idle", type=float, metavar="S", help="seconds of doing nothing (60)")
    parser.add_argument(
        "--leases",
        choices=("flannel", "own"),
        default="flannel",
        help="form of the peers' leases: flannel's, or with our own facts (%(default)s)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write every sample there (bench/results/TIME.json)",
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the tables between the markers there"
    )
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in BENCHES:
            parser.error(f"{name}: there are {', '.join(BENCHES)}")
    try:
        others = [AgentCommand.parse(text) for text in args.agent]
    except ValueError as exc:
        parser.error(f"--agent: {exc}")
    effort_asked = Effort.QUICK if args.quick else Effort.FULL if args.full else Effort.NORMAL
    agents = distinct([AgentCommand.ours(), *others])
    options = Options(effort_asked, agents, args.idle, are_leases_own=args.leases == "own")
    names = args.names or [n for n in BENCHES if n not in _BY_NAME_ONLY]
    try:
        _check_files(names, args)
    except (OSError, OverlayError) as exc:
        parser.error(str(exc))
    return names, options, args


def _check_files(names: Sequence[str], args: argparse.Namespace) -> None:
    """Find out before minutes of work whether its results can be written. Raises."""
    if args.json is not None:
        args.json.touch()
    if args.write is not None:
        text = args.write.read_text()
        for name in names:
            text = rewritten(text, name, "")


def main(argv: Sequence[str]) -> int:
    """Run what was named; return an exit status, 1 where a bench failed: the others have run."""
    names, options, args = parse(argv)
    shown = machine.describe()
    print(shown, flush=True)
    begun = time.strftime("%Y-%m-%dT%H%M%S")
    file = args.json or RESULTS / f"{begun}.json"
    results: dict[str, Any] = {
        "machine": shown,
        "begun": begun,
        "effort": options.effort.value,
        "leases": args.leases,
        "busy_cores": {},
        "seconds": {},
        "benches": {},
    }
    failed: list[str] = []
    with signals.as_exceptions():
        for name in names:
            busy = machine.busy_cores()
            load = machine.load(busy)
            print(f"\n# {name}: {BENCHES[name]}; {load}", flush=True)
            started = time.monotonic()
            try:
                tables = _run(name, options)
            except OverlayError as exc:
                # What the others take minutes to find is not lost with it.
                print(f"bench {name}: {exc}", file=sys.stderr, flush=True)
                failed.append(name)
                continue
            results["busy_cores"][name] = busy
            results["seconds"][name] = time.monotonic() - started
            results["benches"][name] = [each for table in tables for each in table.records]
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(results, indent=1) + "\n")
            if args.write is not None:
                body = "\n\n".join([*map(str, tables), f"On {shown}; {load}."])
                args.write.write_text(rewritten(args.write.read_text(), name, body))
    if failed:
        print(f"\nFailed, and left as they were: {', '.join(failed)}.", file=sys.stderr)
    if results["benches"]:
        print(f"\nEvery sample is in {file}.")
    return 1 if failed else 0


def _run(name: str, options: Options) -> list[Table]:
    """Run one bench; its tables are printed as they come."""
    tables: list[Table] = []
    # Imported by name: one bench does not wait for what another needs.
    for table in importlib.import_module(f"bench.{name.replace('-', '_')}").run(options):
        print(f"\n{table}", flush=True)
        tables.append(table)
    return tables


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OverlayError as exc:
        sys.exit(f"bench: {exc}")
