"""Whether peers answer the agent's probes, through the tunnel and below it."""

from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import Any, Final

from overlay.cli.control import AgentUnreachableError
from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, named, warning

_LOSSY: Final = 0.05  # of the last 60 probes


def _run(facts: Facts) -> Iterator[Verdict]:
    try:
        found = facts.mesh()
    except AgentUnreachableError:
        msg = "the agent, which measures, does not answer"
        raise CannotTellError(msg) from None
    if found["error"]:
        yield Fine(f"not measured: {found['error']}")
        return
    broken = [p for p in found["peers"] if _is(p, "overlay") and not _is(p, "underlay")]
    silent = [p for p in found["peers"] if _is(p, "underlay")]
    lossy = [
        p
        for p in found["peers"]
        if p not in broken and p not in silent and _loss(p, "overlay") > _LOSSY
    ]
    if broken:
        first = broken[0]["subnet"].split("/")[0]
        yield error(
            f"{_names(broken)}: probes through the tunnel get no answer, those beside it do",
            f"overlayctl explain node {first}",
        )
    if silent:
        port = found.get("probe_port")
        yield warning(
            f"{_names(silent)}: no probe gets an answer: down, or UDP {port} closed",
            f"ssh {quote(silent[0]['node'])} systemctl status overlayd",
        )
    if lossy:
        worst = max(lossy, key=lambda peer: _loss(peer, "overlay"))
        share = _loss(worst, "overlay")
        yield warning(
            f"{_names(lossy)}: probes get lost, {share:.0%} of those to {worst['node']}",
            "overlayctl mesh --links; overlayctl mesh --links --underlay",
        )
    yield Fine(f"{len(found['peers'])} peers are measured")


def _is(peer: Mapping[str, Any], way: str) -> bool:
    """Return whether nothing was answered on ``way`` lately."""
    return peer[way] is not None and peer[way]["silent"] is True


def _loss(peer: Mapping[str, Any], way: str) -> float:
    return float((peer[way] or {}).get("loss") or 0.0)


def _names(peers: Sequence[Mapping[str, Any]]) -> str:
    return named(peer["node"] for peer in peers)


CHECK: Final = Check("mesh", "what the agent's probes to peers found", _run)
