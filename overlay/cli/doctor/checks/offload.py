"""Whether this kernel spoils the checksums of encapsulated packets that it translates.

Up to 5.6 a masqueraded packet into the tunnel got a wrong outer UDP checksum
when the device was left to compute it: connections stall for seconds
(flannel#1282, kubernetes#88986; mended by ea64d8d6c675 in Linux 5.7).
"""

import re
from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.kernel.host.offload import has_checksum_offload

_MENDED: Final = (5, 7)


def _run(facts: Facts) -> Iterator[Verdict]:
    found = re.match(r"(\d+)\.(\d+)", facts.release)
    if found is None:
        msg = f"kernel {facts.release!r} has no version that can be read"
        raise CannotTellError(msg)
    if (int(found[1]), int(found[2])) >= _MENDED:
        yield Fine(f"kernel {facts.release} has no such fault")
        return
    for device in facts.fabric().devices:
        if has_checksum_offload(device.name):
            yield error(
                f"kernel {facts.release} spoils checksums of what is masqueraded into "
                f"{device.name} while it offloads them: connections stall",
                f"ethtool -K {device.name} tx-checksum-ip-generic off",
            )
        else:
            yield Fine(f"kernel {facts.release}, {device.name} offloads no checksums")


CHECK: Final = Check("checksum-offload", "the kernel's version and the device's offload", _run)
