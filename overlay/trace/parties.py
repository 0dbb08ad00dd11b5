"""Whom SRC and DST mean: an address, a pod, a container, or a node."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from overlay.model.address import FAMILIES, Family, IPAddress, family_of
from overlay.model.attachment import Attachment
from overlay.model.errors import UsageError
from overlay.trace.facts import Party
from overlay.trace.holders import Knowledge, has_pod

THIS_NODE: Final = "node"
_BROADCAST: Final = ip_address("255.255.255.255")
_LEAST_ID: Final = 6  # characters of a container id, if not whole


@dataclass(frozen=True, slots=True)
class Names:
    """Finds parties. ``is_local`` says whether an address is this node's own."""

    knowledge: Knowledge
    is_local: Callable[[IPAddress], bool]

    def pair(self, source: str, destination: str, family: Family | None) -> tuple[Party, Party]:
        """Return both parties, of one family: ``family``, or that of an address among them.

        Raises UsageError for a name of nobody, and where none of them is here.
        """
        asked = {family_of(a) for a in map(_address, (source, destination)) if a is not None}
        if len(asked) > 1:
            raise UsageError(f"{source} and {destination} are of different families")
        chosen = family or next(iter(asked), None)
        if asked and chosen not in asked:
            raise UsageError(f"{source} {destination}: an address is not {chosen}")
        for each in (chosen,) if chosen is not None else FAMILIES:
            found = self.party(source, each), self.party(destination, each)
            if found[0] is not None and found[1] is not None:
                return self._one_is_here(found[0], found[1])
        raise UsageError(f"{source} and {destination} share no address family")

    def party(self, text: str, family: Family) -> Party | None:
        """Return whom ``text`` means; None where it has no address of ``family``."""
        address = _address(text)
        if address is None:
            address, is_known = self._named(text, family)
            if not is_known:
                raise UsageError(
                    f"{text!r} is no address, no pod or container of this node (NAMESPACE/NAME, "
                    f"or its id), no node with a lease and not {THIS_NODE!r}; see "
                    "`overlayctl ipam list` and `overlayctl leases`"
                )
        if address is None:
            return None
        return self._holding(text, address)

    def _holding(self, text: str, address: IPAddress) -> Party:
        own = self.knowledge.own
        if any(address in pod.addresses for pod in self.knowledge.attachments):
            return Party(text, address, "pod", is_here=True, holder=own)
        if self.is_local(address):
            return Party(text, address, "node", is_here=True, holder=own)
        if own is not None and has_pod(own, address):
            return Party(text, address, "pod", is_here=True, holder=own)
        for holder in self.knowledge.holders:
            if has_pod(holder, address):
                return Party(text, address, "pod", holder=holder)
        for holder in self.knowledge.holders:
            if address in holder.public.values():
                return Party(text, address, "node", holder=holder)
        return Party(text, address, "other")

    def _named(self, text: str, family: Family) -> tuple[IPAddress | None, bool]:
        """Return the address of ``family`` that a name stands for, and whether it is known."""
        own = self.knowledge.own
        if text == THIS_NODE or (own is not None and text == own.node):
            return own.public.get(family) if own is not None else None, True
        pods = [pod for pod in self.knowledge.attachments if _is_called(pod, text)]
        if len({pod.key.container for pod in pods}) > 1:
            shown = ", ".join(pod.shown for pod in pods)
            raise UsageError(f"{text!r} means several: {shown}")
        if pods:
            found = (a for pod in pods for a in pod.addresses if family_of(a) is family)
            return next(found, None), True
        for holder in self.knowledge.holders:
            if text == holder.node:
                return holder.public.get(family), True
        return None, False

    def _one_is_here(self, source: Party, destination: Party) -> tuple[Party, Party]:
        if source.is_here or destination.is_here:
            return source, destination
        where = " or ".join(sorted({p.node for p in (source, destination) if p.node})) or "its node"
        raise UsageError(
            f"neither {source.asked} nor {destination.asked} is on this node; ask on {where}"
        )


def _is_called(pod: Attachment, text: str) -> bool:
    container = pod.key.container
    if text == container or (len(text) >= _LEAST_ID and container.startswith(text)):
        return True
    space, name = (pod.arguments.get(f"K8S_POD_{part}", "") for part in ("NAMESPACE", "NAME"))
    return bool(name) and text in {name, f"{space}/{name}"}


def _address(text: str) -> IPAddress | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    is_mapped = found.version == 6 and found.ipv4_mapped is not None
    is_odd = "%" in text or is_mapped or found == _BROADCAST
    if is_odd or found.is_multicast or found.is_unspecified:
        raise UsageError(f"{text}: not an address that one packet goes to or comes from")
    if found.is_loopback or (found.version == 6 and found.is_link_local):
        raise UsageError(
            f"{text}: every host and pod, or every link, has one of its own; write the pod's "
            f"address, or {THIS_NODE!r}"
        )
    return found
