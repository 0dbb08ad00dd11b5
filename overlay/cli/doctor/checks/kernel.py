"""Whether the kernel can do what the fabric asks of it."""

from collections.abc import Iterator, Mapping
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.kernel.host.features import RULESETS, missing

KINDS: Final = ("vxlan", "veth", "bridge")
_NFT_MODULES: Final = (
    "modprobe -a nf_tables nft_masq nft_fib_inet nft_reject_inet nft_ct nft_log nfnetlink_log "
    "nft_limit nf_tables_bridge"
)


def judge(lacking: Mapping[str, str]) -> Iterator[Verdict]:
    """Yield a finding for each feature that the kernel lacks, by its name and its own words."""
    for name, words in lacking.items():
        if name not in RULESETS:
            reason = f"the kernel makes no {name} device: {words}"
            yield error(reason, f"modprobe {name}")
        elif "PATH" in words:
            yield error(f"nftables: {words}", "apt-get install nftables")
        else:
            yield error(f"the kernel refuses {RULESETS[name]}: {words}", _NFT_MODULES)


def _run(_facts: Facts) -> Iterator[Verdict]:
    lacking = missing(KINDS)
    yield from judge(lacking)
    if not lacking:
        yield Fine(f"{', '.join((*KINDS, *RULESETS))} work")


CHECK: Final = Check(
    "kernel", "links and rulesets as the agent makes them, tried in a spare namespace", _run
)
