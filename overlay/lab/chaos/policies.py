"""What somebody else does to the subject's table of network policies. Rows of the group ``drift``.

A policy is in force for the length of a row: it lets the stream's packets
pass. One may be lost while the table is written anew: the kernel has the new
rules in force some 0.1 ms before the intervals that they look addresses up in
(nf_tables_commit, Linux 6.18).
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

from overlay.lab import netns
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.drift import GROUP, MEDIAN_S
from overlay.lab.chaos.fault import Fault, Plant, Planted
from overlay.lab.chaos.stage import PREFIX, Stage
from overlay.lab.errors import LabError
from overlay.lab.topology import POD_NETWORKS
from overlay.model.address import Family

_TABLE: Final = ("inet", "overlay_policy")
_KEY: Final = f"{PREFIX}policies/networkpolicies/default/chaos"
_POLICY: Final = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "chaos", "namespace": "default"},
    "spec": {
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": POD_NETWORKS[Family.IPV4]}}]}],
    },
}
_ROUNDS: Final = 5
_HAS_NONE: Final = "has none"
_RULE: Final = re.compile(r"^\t\t(?!type ).* # handle (\d+)$", re.MULTILINE)


def faults() -> list[Fault]:
    """Return the kinds of drift of the policies' table."""
    kinds: list[tuple[str, Callable[[Stage], Sequence[str]]]] = [
        ("policy table deleted", lambda _: ("delete", "table", *_TABLE)),
        ("policy table's chain flushed", lambda _: ("flush", "chain", *_TABLE, "ov_forward")),
        ("policy rule deleted", _first_rule),
        (
            "policy element added",
            lambda _: ("add", "element", *_TABLE, "ov_shut4", "{", "198.18.0.1", "}"),
        ),
    ]
    return [
        Fault(
            name,
            GROUP,
            _damaged(words),
            _HAS_NONE,
            _ROUNDS,
            median_target_s=MEDIAN_S,
        )
        for name, words in kinds
    ]


def _damaged(words: Callable[[Stage], Sequence[str]]) -> Plant:
    def plant(stage: Stage) -> Planted:
        stage.gateway.put({_KEY: json.dumps(_POLICY).encode()})
        stage.await_that(lambda: "ov_to4" in _listing(stage), "the policy is in force")
        wanted = _listing(stage)
        command, told = words(stage), stage.log_size(SUBJECT)
        at, mark = time.monotonic(), stage.stream.mark()
        stage.run(SUBJECT, "nft", *command)

        def right() -> bool:
            # What was never noticed was never damaged: a look may come before the repair.
            return stage.log_size(SUBJECT) > told and _listing(stage) == wanted

        def undo() -> None:
            stage.gateway.delete([_KEY])
            stage.await_that(lambda: "ov_to4" not in _listing(stage), "the policy is gone")

        return Planted(right, at, undo, mark)

    return plant


def _first_rule(stage: Stage) -> Sequence[str]:
    found = _RULE.search(_nft(stage, "--handle", "list", "chain", *_TABLE, "ov_forward"))
    if found is None:
        msg = "the chain ov_forward of the policies' table has no rule"
        raise LabError(msg)
    return ("delete", "rule", *_TABLE, "ov_forward", "handle", found[1])


def _listing(stage: Stage) -> str:
    return _nft(stage, "--stateless", "list", "table", *_TABLE)


def _nft(stage: Stage, *words: str) -> str:
    def run() -> str:
        return subprocess.run(["nft", *words], capture_output=True, text=True, check=False).stdout

    return netns.inside(stage.namespace(SUBJECT), run)
