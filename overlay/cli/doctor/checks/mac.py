"""Whether the devices have the MAC addresses that peers send to.

systemd-udevd gives virtual devices another one where a policy says so, and
peers' frames are dropped then without a word (flannel#1155, #1795).
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.link_files import file_for
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Unknown, Verdict, error
from overlay.model.address import Family, MacAddress, family_of
from overlay.model.errors import OverlayError
from overlay.model.kernel import VxlanLink
from overlay.model.node import vtep_mac


def _run(facts: Facts) -> Iterator[Verdict]:
    for device in facts.fabric().devices:
        wanted, source = _wanted(facts, device)
        if wanted is None:
            yield Unknown(f"{device.name} has {device.mac}; what peers send to, {source}")
        elif wanted == device.mac:
            yield Fine(f"{device.name} has {device.mac}, as {source}")
        else:
            yield error(
                f"{device.name} has MAC address {device.mac}, {source} {wanted}: it drops what "
                f"peers send{_policy(facts, device.name)}",
                f"ip link set {device.name} address {wanted}",
            )


def _wanted(facts: Facts, device: VxlanLink) -> tuple[MacAddress | None, str]:
    """Return the MAC address that peers send to, and who says so."""
    family: Family = family_of(device.local)
    try:
        lease = facts.own_lease()
        data = lease.attributes.backend_data.get(family, {}) if lease is not None else {}
        mac = data.get("VtepMAC")
        if isinstance(mac, str):
            return MacAddress(mac.lower()), "its lease has"
        why = "no lease of this node says"
    except OverlayError as exc:
        why = f"nobody can say: {exc}"
    with contextlib.suppress(OverlayError):
        node_id = (facts.agent().get("node") or {}).get("id")
        if isinstance(node_id, str):
            return vtep_mac(node_id, device.vni, family), "the agent wants"
    return None, why


def _policy(facts: Facts, link: str) -> str:
    """Return the file whose policy may be to blame, as the end of a sentence."""
    found = file_for(facts.places.root, link, ".link")
    said = [s for s in found[1] if s.key == "MACAddressPolicy"] if found is not None else []
    if not said or said[-1].value == "none":
        return ""
    return f" (udev's {said[-1].file} sets MACAddressPolicy={said[-1].value})"


CHECK: Final = Check("mac-address", "MAC of the devices against the lease's", _run, Scope.STORE)
