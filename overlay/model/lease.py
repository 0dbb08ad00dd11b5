"""Leases as they stand in the store, and the whole view of them.

The value's form is flannel's (``pkg/lease/lease.go``, ``LeaseAttrs``); our own
facts sit in one extra key, ``Overlay``, that flannel ignores. A lease without
it was written by flannel and is a full peer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final, TypeAlias

from overlay.model.address import FAMILIES, ByFamily, Family, IPAddress, parse_node_address
from overlay.model.document import parse_json
from overlay.model.errors import LeaseFormatError, shown
from overlay.model.fabric_key import NO_KEYS, FabricKeys
from overlay.model.network import NetworkConfig
from overlay.model.record import Record
from overlay.model.subnet import Subnet, parse_subnet_key

Json: TypeAlias = Any  # what parse_json returns; narrowed where it enters

RESERVATION: Final = "reservation"  # BackendType of a subnet kept for a node that is not there yet
_MAX_VALUE: Final = 64 * 1024  # bytes; flannel's values have some 150
_PUBLIC_KEY: Final = {Family.IPV4: "PublicIP", Family.IPV6: "PublicIPv6"}
_DATA_KEY: Final = {Family.IPV4: "BackendData", Family.IPV6: "BackendV6Data"}


@dataclass(frozen=True, slots=True)
class Owner:
    """Who claimed a lease: our own facts, absent from flannel's leases.

    ``claimed_at`` is the claimer's wall clock, RFC 3339, for people to read;
    nothing is decided by it. ``boot`` is the host's, see ``NodeIdentity``.
    """

    node_id: str
    node_name: str = ""
    version: str = ""
    claimed_at: str = ""
    boot: str = ""


@dataclass(frozen=True, slots=True)
class LeaseAttributes:
    """What a node says of itself in its lease.

    ``public`` holds the node's underlay address for each family it has;
    ``backend_data`` what the backend's peers need to know, keyed by the
    *underlay's* family, in the backend's own JSON.
    """

    backend_type: str
    public: Mapping[Family, IPAddress] = field(default_factory=dict)
    backend_data: Mapping[Family, Mapping[str, Json]] = field(default_factory=dict)
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """One subnet, held by one node.

    ``create_revision`` and ``mod_revision`` are the store's, for
    compare-and-swap and to tell which of two claims came first. ``lease_id``
    is the store's handle for the time to live; 0 means that it has none: the
    lease is a reservation.
    """

    subnet: Subnet
    attributes: LeaseAttributes
    create_revision: int = 0
    mod_revision: int = 0
    lease_id: int = 0

    @property
    def is_permanent(self) -> bool:
        """Return whether the lease never ends by itself."""
        return self.lease_id == 0

    @property
    def is_vacant(self) -> bool:
        """Return whether the subnet is only kept for a node that has not claimed it."""
        return self.attributes.backend_type == RESERVATION

    @property
    def node(self) -> str:
        """Return the best name there is for the holder."""
        owner = self.attributes.owner
        if owner is not None and (owner.node_name or owner.node_id):
            return owner.node_name or owner.node_id
        return next((str(ip) for ip in self.attributes.public.values()), "?")


@dataclass(frozen=True, slots=True)
class SkippedKey:
    """A key that could not be read, and why; it changes nothing else."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Challenge:
    """Somebody who starts under a node id asks its holder for a sign of life.

    ``attributes`` are what the asker would write into the lease.
    """

    attributes: LeaseAttributes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class LeaseView:
    """Everything the store holds for one fabric, at one revision.

    ``leases`` is keyed by lease key (``Subnet.key``). ``config`` is None where
    none is written yet or where it cannot be read; ``config_error`` tells the
    two apart. ``challenges`` is keyed by node id.
    """

    revision: int
    leases: Mapping[str, Lease] = field(default_factory=dict)
    config: NetworkConfig | None = None
    config_error: str | None = None
    skipped: tuple[SkippedKey, ...] = ()
    challenges: Mapping[str, Challenge] = field(default_factory=dict)
    fabric_keys: FabricKeys = NO_KEYS


def parse_lease(
    key: str,
    value: bytes,
    *,
    create_revision: int = 0,
    mod_revision: int = 0,
    lease_id: int = 0,
) -> Lease:
    """Return the lease that one key and value of the store hold.

    ``key`` is the part behind ``PREFIX/subnets/``. Raises LeaseFormatError.
    """
    return Lease(
        subnet=parse_subnet_key(key),
        attributes=parse_attributes(key, value),
        create_revision=create_revision,
        mod_revision=mod_revision,
        lease_id=lease_id,
    )


def parse_attributes(key: str, value: bytes) -> LeaseAttributes:
    """Return what a lease's value says; ``key`` is for the error's text.

    Raises LeaseFormatError for a value that is no lease.
    """
    return attributes_in(key, _parse_object(key, value))


def attributes_in(key: str, document: Mapping[str, Json]) -> LeaseAttributes:
    """Return what the JSON object of a lease's value says; see ``parse_attributes``."""
    backend_type = document.get("BackendType")
    if not isinstance(backend_type, str) or not backend_type:
        msg = f"lease {key}: BackendType {shown(backend_type)} is not a name"
        raise LeaseFormatError(msg)
    public: dict[Family, IPAddress] = {}
    backend_data: dict[Family, Mapping[str, Json]] = {}
    for family in FAMILIES:
        address = _parse_public(key, document.get(_PUBLIC_KEY[family]), family)
        if address is not None:
            public[family] = address
        data = document.get(_DATA_KEY[family])
        if data is None:
            continue
        if not isinstance(data, dict):
            msg = f"lease {key}: {_DATA_KEY[family]} is not an object"
            raise LeaseFormatError(msg)
        backend_data[family] = Record(data)
    if not public and backend_type != RESERVATION:
        msg = f"lease {key}: neither PublicIP nor PublicIPv6 names an address"
        raise LeaseFormatError(msg)
    data = ByFamily.of(backend_data)
    return LeaseAttributes(intern(backend_type), ByFamily.of(public), data, _parse_owner(document))


def format_attributes(attributes: LeaseAttributes) -> bytes:
    """Return the lease value that ``parse_attributes`` reads, as flannel would write it."""
    v4 = attributes.public.get(Family.IPV4)
    v6 = attributes.public.get(Family.IPV6)
    document: dict[str, Json] = {
        # flannel's PublicIP is a value, not a pointer: without IPv4 it writes 0.0.0.0.
        "PublicIP": str(v4) if v4 is not None else "0.0.0.0",  # noqa: S104
        "PublicIPv6": str(v6) if v6 is not None else None,
        "BackendType": attributes.backend_type,
    }
    for family in FAMILIES:
        if family in attributes.backend_data:
            document[_DATA_KEY[family]] = dict(attributes.backend_data[family])
    owner = attributes.owner
    if owner is not None:
        document["Overlay"] = {
            "NodeID": owner.node_id,
            "NodeName": owner.node_name,
            "Version": owner.version,
            "ClaimedAt": owner.claimed_at,
            **({"Boot": owner.boot} if owner.boot else {}),
        }
    return json.dumps(document, separators=(",", ":")).encode()


def _parse_object(key: str, value: bytes) -> dict[str, Json]:
    if len(value) > _MAX_VALUE:
        msg = f"lease {key}: value of {len(value)} bytes; at most {_MAX_VALUE} are read"
        raise LeaseFormatError(msg)
    try:
        document = parse_json(value)
    except ValueError as exc:
        msg = f"lease {key}: value is not JSON: {exc}"
        raise LeaseFormatError(msg) from exc
    if not isinstance(document, dict):
        msg = f"lease {key}: value is not a JSON object"
        raise LeaseFormatError(msg)
    return document


def _parse_public(key: str, text: Json, family: Family) -> IPAddress | None:
    if text in (None, "", "0.0.0.0", "::"):  # noqa: S104 - flannel's spelling of "none"
        return None
    if not isinstance(text, str):
        msg = f"lease {key}: {_PUBLIC_KEY[family]} {shown(text)} is not an address"
        raise LeaseFormatError(msg)
    try:
        return parse_node_address(text, family)
    except ValueError as exc:
        msg = f"lease {key}: {_PUBLIC_KEY[family]}: {exc}"
        raise LeaseFormatError(msg) from exc


def _parse_owner(document: Mapping[str, Json]) -> Owner | None:
    """Return our own facts; ill-formed ones count as absent, for only we write them."""
    facts = document.get("Overlay")
    if not isinstance(facts, dict) or not isinstance(facts.get("NodeID"), str):
        return None

    def text(name: str) -> str:
        value = facts.get(name)
        return value if isinstance(value, str) else ""

    return Owner(
        facts["NodeID"], text("NodeName"), intern(text("Version")), text("ClaimedAt"), text("Boot")
    )
