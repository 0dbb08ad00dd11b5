"""What commands that damage something speak of."""

import re
from typing import Final

from overlay.lab import pods
from overlay.lab.chaos.cast import PARTNER, SUBJECT
from overlay.lab.chaos.picture import LINKS, LINKS_V6
from overlay.lab.chaos.stage import Stage
from overlay.lab.errors import LabError
from overlay.model.address import Family

_LINKS: Final = {Family.IPV4: LINKS, Family.IPV6: LINKS_V6}


def names_of(stage: Stage, family: Family = Family.IPV4) -> dict[str, str]:
    """Return the partner's entries and the subject's own address, by the word that is put in.

    Raises LabError where the subject has no neighbor entry of the partner.
    """
    subnet, own = (
        pods.read_subnet_file(stage.lab.dir.subnet_file(node)).subnets[family].network
        for node in (PARTNER, SUBJECT)
    )
    gateway = str(subnet.network_address)
    shown = stage.baseline(SUBJECT)[_LINKS[family]]
    mac = re.search(rf"^{re.escape(gateway)} lladdr (\S+)", shown, re.MULTILINE)
    if mac is None:
        msg = f"{SUBJECT} has no neighbor {gateway} in {shown}"
        raise LabError(msg)
    return {
        "subnet": str(subnet),
        "gateway": gateway,
        "mac": mac[1],
        "public": stage.public(PARTNER, family),
        "own": str(own.network_address),
    }
