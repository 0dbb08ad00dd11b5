"""What this node's agent, or else the store, knows: leases, and the attachments of this node.

The agent is asked first: it answers within milliseconds. Where it does not,
the store has the leases and the state directory the attachments.
"""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from overlay.cli import shapes
from overlay.cli.control import AgentRefusedError, AgentUnreachableError, call
from overlay.cli.flags import socket_path, store_config
from overlay.model.address import Family, IPAddress, family_of
from overlay.model.attachment import Attachment, AttachmentFormatError, parse_attachment
from overlay.model.document import parse_json
from overlay.model.errors import LeaseFormatError
from overlay.model.subnet import parse_subnet
from overlay.store.base import LeaseStore, StoreError
from overlay.trace.facts import Holder
from overlay.trace.holders import Knowledge, lease_holder, numbers, texts

_AGENT_S: Final = 2.0  # an agent that hangs must not hang us


def read_knowledge(args: Namespace, own_addresses: Iterable[IPAddress]) -> Knowledge:
    """Return what the agent knows, or the store; ``own_addresses`` are those of this node."""
    path = socket_path(args)
    try:
        return _from_agent(path)
    except (AgentUnreachableError, AgentRefusedError) as exc:
        note = f"nothing is repaired while the agent does not answer: {exc}"
    attachments = read_attachments(path.parent / "attachments")
    try:
        store: LeaseStore = args.open_store(store_config(args))
        try:
            leases = store.view().leases.values()
        finally:
            store.close()
    except StoreError as exc:
        more = f"who holds which subnet is not known: {exc}"
        return Knowledge(
            None, (), attachments, is_complete=False, notes=(note, more), has_agent=False
        )
    holders = tuple(lease_holder(lease) for lease in leases if not lease.is_vacant)
    here = frozenset(own_addresses)
    own = next((h for h in holders if here & set(h.public.values())), None)
    others = tuple(h for h in holders if h is not own)
    return Knowledge(own, others, attachments, notes=(note,), has_agent=False)


def read_attachments(directory: Path) -> tuple[Attachment, ...]:
    """Return the attachments that the agent of this node wrote; what cannot be read is left out."""
    found = []
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else ():
        try:
            found.append(parse_attachment(parse_json(path.read_bytes())))
        except (OSError, ValueError, AttachmentFormatError):
            continue
    return tuple(found)


def _from_agent(path: Path) -> Knowledge:
    status = call(path, "status", like=shapes.STATUS, timeout_s=_AGENT_S)
    peers = call(path, "peers", like=shapes.PEERS, timeout_s=_AGENT_S)["peers"]
    held = call(path, "ipam", like=shapes.IPAM, timeout_s=_AGENT_S)["attachments"]
    try:
        own = _own(status)
        holders = [_peer_holder(peer) for peer in peers]
        attachments = tuple(parse_attachment(each) for each in held)
    except (ValueError, LeaseFormatError, AttachmentFormatError) as exc:
        msg = f"{path}: the answer cannot be read: {exc}; do both programs have one version?"
        raise AgentUnreachableError(msg) from exc
    holders += _refused(status.get("problems") or [])
    reasons = status.get("reasons") or []
    notes = tuple(f"the agent is not ready: {reason}" for reason in reasons)
    return Knowledge(own, tuple(holders), attachments, status["phase"] == "running", notes)


def _own(status: Mapping[str, Any]) -> Holder | None:
    subnet, underlay = status.get("subnet"), status.get("underlay")
    if not subnet or not underlay:
        return None
    addresses = [ip_address(text) for text in underlay["addresses"]]
    vteps = _vteps(status)
    return Holder(
        node=(status.get("node") or {}).get("name") or "",
        networks=tuple(parse_subnet(subnet).networks()),
        public={family_of(address): address for address in addresses},
        macs=texts({family: vtep.get("mac") for family, vtep in vteps.items()}),
        vnis=numbers({family: vtep.get("vni") for family, vtep in vteps.items()}),
        backend=status.get("backend") or "",
    )


def _peer_holder(peer: Mapping[str, Any]) -> Holder:
    addresses = [ip_address(text) for text in peer["public"]]
    vteps = _vteps(peer)
    return Holder(
        node=peer["node"],
        # Of a thousand peers one is looked at: no more is parsed than must be.
        networks=tuple(ip_network(text) for text in peer["subnet"].split()),
        public={family_of(address): address for address in addresses},
        macs=texts({family: vtep.get("mac") for family, vtep in vteps.items()}),
        vnis=numbers({family: vtep.get("vni") for family, vtep in vteps.items()}),
        backend=peer["backend"],
    )


def _vteps(document: Mapping[str, Any]) -> dict[Family, Mapping[str, Any]]:
    found = document.get("vteps") or ()
    return {Family(vtep["family"]): vtep for vtep in found if vtep.get("family") in {4, 6}}


def _refused(problems: Iterable[Mapping[str, Any]]) -> list[Holder]:
    """Return the leases that the agent does not take for peers, each with its reason."""
    found = []
    for problem in problems:
        try:
            subnet = parse_subnet(problem["about"])
        except LeaseFormatError:
            continue
        words = problem["text"].split(" of node ", 1)
        node = words[1].split(" ", 1)[0] if len(words) == 2 else "?"
        found.append(Holder(node, tuple(subnet.networks()), problem=problem["text"]))
    return found
