"""Whether this kernel spoils the checksums of encapsulated packets that it translates.

Up to 5.6 a masqueraded packet into the tunnel got a wrong outer UDP checksum
when the device was left to compute it: connections stall for seconds
(flannel#1282, kubernetes#88986). The agent turns the offload off there,
unless it is told to keep it.
"""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.kernel.host.offload import has_checksum_offload, spoils_checksums


def _run(facts: Facts) -> Iterator[Verdict]:
    try:
        is_bad = spoils_checksums(facts.release)
    except ValueError as exc:
        raise CannotTellError(str(exc)) from exc
    if not is_bad:
        yield Fine(f"kernel {facts.release} has no such fault")
        return
    for device in facts.fabric().devices:
        if has_checksum_offload(device.name):
            yield error(
                f"kernel {facts.release} spoils checksums of what is masqueraded into "
                f"{device.name} while it offloads them: connections stall",
                f"take --vxlan-checksum-offload=on from the agent, or without one "
                f"ethtool -K {device.name} tx-checksum-ip-generic off",
            )
        else:
            yield Fine(f"kernel {facts.release}, {device.name} offloads no checksums")


CHECK: Final = Check("checksum-offload", "the kernel's version and the device's offload", _run)
