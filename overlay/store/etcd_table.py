"""What etcd holds under one prefix: parsed once, kept up to date by events.

A key or value that cannot be read is skipped and changes nothing else. Where
the same key held a readable lease before, that lease stays until the key is
deleted or readable again: a malformed value never removes a working peer.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay.model.errors import ConfigError, LeaseFormatError
from overlay.model.fabric_key import FabricKeyError, FabricKeys, parse_fabric_key
from overlay.model.lease import (
    Challenge,
    Lease,
    LeaseView,
    SkippedKey,
    parse_attributes,
    parse_lease,
)
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.versioned import MapHistory

log = logging.getLogger(__name__)

CONFIG: Final = "config"  # below the prefix
SUBNETS: Final = "subnets/"
CHALLENGES: Final = "challenges/"
FABRIC_KEY: Final = "fabric-key"
FABRIC_KEY_PREVIOUS: Final = "fabric-key-previous"

State: TypeAlias = tuple[int, int, int]  # revisions of creation and change, and the etcd lease


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd holds it; ``value`` is None where the key was deleted."""

    key: bytes
    value: bytes | None
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything under the prefix at one revision of one cluster."""

    revision: int
    cluster_id: int
    keys: tuple[KeyValue, ...]


class LeaseReader:
    """Parses leases, each only once while it does not change; shared by all tables of a store.

    What cannot be read is logged once for each key and revision.
    """

    def __init__(self, root: str) -> None:
        self.root = root.encode()
        # By name: a hash of the value, and the lease itself, or what tells the state that
        # cannot be read and why. Thousands of leases: nothing stands twice.
        self._known: dict[str, tuple[int, Lease | tuple[State, SkippedKey]]] = {}

    def read(self, found: KeyValue) -> Lease | SkippedKey:
        """Return the lease of one key below ``subnets/``, or why there is none."""
        value = found.value or b""
        name = self.name(found.key)
        # The value is part of it: an etcd put back from a backup counts its revisions again.
        state, digest = state_of(found), hash(value)
        known_digest, known = self._known.get(name, (0, None))
        if known is not None and known_digest == digest:
            if isinstance(known, Lease):
                if state_of(known) == state:
                    return known
            elif known[0] == state:
                return known[1]
        result = self._parse(name, found, value)
        if isinstance(result, Lease):
            self._known[result.subnet.key] = (digest, result)
        else:
            self._known[name] = (digest, (state, result))
        return result

    def forget(self, key: bytes) -> None:
        """Drop what is known of a key that is gone."""
        self._known.pop(self.name(key), None)

    def retain(self, keys: Iterable[bytes]) -> None:
        """Drop what is known of all keys but ``keys``."""
        for name in self._known.keys() - set(map(self.name, keys)):
            del self._known[name]

    def name(self, key: bytes) -> str:
        """Return the part of a key that names the lease."""
        return key[len(self.root) + len(SUBNETS) :].decode(errors="backslashreplace")

    def _parse(self, name: str, found: KeyValue, value: bytes) -> Lease | SkippedKey:
        try:
            lease = parse_lease(
                name,
                value,
                create_revision=found.create_revision,
                mod_revision=found.mod_revision,
                lease_id=found.lease_id,
            )
            if lease.subnet.key != name:
                msg = f"lease key {name!r} is spelled {lease.subnet.key!r} by every agent"
                raise LeaseFormatError(msg)  # noqa: TRY301 - skipped like any other bad key
        except LeaseFormatError as exc:
            log.warning(
                "etcd key %r (revision %d) is skipped: %s",
                found.key.decode(errors="backslashreplace"),
                found.mod_revision,
                exc,
            )
            return SkippedKey(name, str(exc))
        else:
            return lease


class LeaseTable:
    """The leases and the config as of ``revision``. Not for several threads at once."""

    def __init__(self, reader: LeaseReader) -> None:
        self._reader = reader
        self._leases: MapHistory[str, Lease] = MapHistory()
        self._skipped: dict[str, SkippedKey] = {}
        self._told: tuple[SkippedKey, ...] | None = None  # of them; None once they changed
        self._challenges: MapHistory[str, Challenge] = MapHistory()
        self._keys: dict[str, bytes] = {}  # the fabric's, as they stand
        # The state of each key, but of those whose lease stands in the table as it was read.
        self._seen: dict[bytes, tuple[State, bytes]] = {}
        self._config: NetworkConfig | None = None
        self._config_error: str | None = None
        self.config_revision = 0  # 0 where there is no config
        self.config_text: bytes | None = None
        self.revision = 0
        self.cluster_id = 0

    def replace(self, listing: Listing) -> None:
        """Take over a whole listing; what is not in it is gone."""
        self._reader.retain(found.key for found in listing.keys)
        before = self._leases.snapshot()
        self._leases, self._challenges = MapHistory(), MapHistory()
        self._skipped, self._told, self._keys, self._seen = {}, None, {}, {}
        self._set_config(None)
        for found in listing.keys:
            kept = before.get(self._reader.name(found.key)) if self._is_lease(found) else None
            # Only while it is the same key: one that was deleted in between is another lease.
            if kept is not None and kept.create_revision == found.create_revision:
                self._leases.put(kept.subnet.key, kept)
            self._take(found)
        self.revision = listing.revision
        self.cluster_id = listing.cluster_id

    def apply(self, events: Iterable[KeyValue]) -> bool:
        """Take over changes in order; return whether any of them is of this fabric."""
        is_changed = False
        for event in events:
            is_changed = self._take(event) or is_changed
            self.revision = max(self.revision, event.mod_revision)
        return is_changed

    def is_made_of(self, keys: Iterable[KeyValue]) -> bool:
        """Return whether the table holds exactly ``keys``; values count without an etcd lease.

        Two histories of a store may give one key the same revision, but
        hardly the same etcd lease.
        """
        return self.evidence() == {e.key: _evidence(e) for e in keys if self._is_of_fabric(e)}

    def evidence(self) -> dict[bytes, tuple[State, bytes]]:
        """Return the state of each key, with its value where it has no etcd lease."""
        below = self._reader.root + SUBNETS.encode()
        leases = self._leases.snapshot().items()
        read = {below + name.encode(): (state_of(lease), b"") for name, lease in leases}
        return {**read, **self._seen}

    def view(self) -> LeaseView:
        """Return what the table now holds; the view does not change any more.

        Costs what changed since the last one.
        """
        if self._told is None:
            self._told = tuple(self._skipped.values())
        return LeaseView(
            revision=self.revision,
            leases=self._leases.snapshot(),
            config=self._config,
            config_error=self._config_error,
            skipped=self._told,
            challenges=self._challenges.snapshot(),
            fabric_keys=self._fabric_keys(),
        )

    def _fabric_keys(self) -> FabricKeys:
        """Return the keys that can be read; one that cannot be counts for nothing."""
        found: dict[str, bytes] = {}
        error: str | None = None
        for name, value in self._keys.items():
            try:
                found[name] = parse_fabric_key(value)
            except FabricKeyError as exc:
                error = str(exc)
        return FabricKeys(found.get(FABRIC_KEY), found.get(FABRIC_KEY_PREVIOUS), error)

    def _is_lease(self, found: KeyValue) -> bool:
        return found.key.startswith(self._reader.root + SUBNETS.encode())

    def _is_of_fabric(self, found: KeyValue) -> bool:
        return self._is_lease(found) or (
            self._name(found) in {CONFIG, FABRIC_KEY, FABRIC_KEY_PREVIOUS}
            or self._name(found).startswith(CHALLENGES)
        )

    def _name(self, found: KeyValue) -> str:
        """Return a key without the prefix."""
        return found.key[len(self._reader.root) :].decode(errors="replace")

    def _take(self, found: KeyValue) -> bool:
        if not self._is_of_fabric(found):
            return False
        self._seen.pop(found.key, None)
        if not self._is_lease(found):
            if found.value is not None:
                self._seen[found.key] = _evidence(found)
            return self._take_fact(self._name(found), found)
        name = self._reader.name(found.key)
        if self._skipped.pop(name, None) is not None:
            self._told = None
        if found.value is None:
            self._reader.forget(found.key)
            self._leases.discard(name)
            return True
        result = self._reader.read(found)
        if isinstance(result, Lease):
            self._leases.put(result.subnet.key, result)
        else:
            self._skipped[name], self._told = result, None
        if not found.lease_id or not isinstance(result, Lease):
            self._seen[found.key] = _evidence(found)
        return True

    def _take_fact(self, name: str, found: KeyValue) -> bool:
        """Take over what is no lease: config, key or challenge."""
        if name == CONFIG:
            self._set_config(found if found.value is not None else None)
            return True
        if name.startswith(CHALLENGES):
            return self._take_challenge(found)
        self._keys.pop(name, None)
        if found.value is not None:
            self._keys[name] = found.value
        return True

    def _take_challenge(self, found: KeyValue) -> bool:
        """Note who is asked for a sign of life; that one ends is no news to anybody.

        What cannot be read asks nobody: an agent wrote none of it.
        """
        name = found.key[len(self._reader.root) + len(CHALLENGES) :].decode(errors="replace")
        self._challenges.discard(name)
        if found.value is None:
            return False
        try:
            attributes = parse_attributes(name, found.value)
        except LeaseFormatError as exc:
            log.debug("challenge is skipped: %s", exc)
            return False
        if attributes.owner is None or attributes.owner.node_id != name:
            return False
        self._challenges.put(name, Challenge(attributes, found.mod_revision))
        return True

    def _set_config(self, found: KeyValue | None) -> None:
        self.config_revision = found.mod_revision if found is not None else 0
        self.config_text = found.value if found is not None else None
        self._config, self._config_error = None, None
        if self.config_text is None:
            return
        try:
            self._config = parse_network_config(self.config_text)
        except ConfigError as exc:
            self._config_error = str(exc)


def state_of(found: KeyValue | Lease) -> State:
    """Return what the store itself tells a key's states apart by."""
    return (found.create_revision, found.mod_revision, found.lease_id)


def _evidence(found: KeyValue) -> tuple[State, bytes]:
    return state_of(found), b"" if found.lease_id else found.value or b""
