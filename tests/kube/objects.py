"""What an API server holds: any kind of object, its revisions, and the log that watches read."""

import base64
import binascii
import copy
import json
import threading
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]


class RefusedError(Exception):
    """What a client gets instead: an HTTP status, and a Status object made of it."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        self.code, self.reason, self.details = code, reason, details
        super().__init__(message)

    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where objects of one kind live: ``nodes``, or ``pods`` in a namespace (None: in all)."""

    resource: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """What a list or a watch asks for: fields and labels that must be equal, or must not."""

    fields: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()  # fields that must not be equal

    def takes(self, found: Object | None) -> bool:
        if found is None:
            return False
        meta = found["metadata"]
        return (
            all(_field(found, path) == value for path, value in self.fields)
            and all(_field(found, path) != value for path, value in self.others)
            and all(meta.get("labels", {}).get(name) == value for name, value in self.labels)
        )


@dataclass(frozen=True, slots=True)
class Event:
    revision: int
    place: Place
    type: str
    object: Object
    before: Object | None = None

    def seen_by(self, selector: Selector) -> str | None:
        """Return what it is to a watch: what no longer fits is DELETED to it."""
        now = self.type != "DELETED" and selector.takes(self.object)
        if selector.takes(self.before):
            return "MODIFIED" if now else "DELETED"
        return "ADDED" if now else None


@dataclass
class Objects:
    """All objects of one cluster; any thread may call."""

    revision: int = 100
    compacted: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    log: list[Event] = field(default_factory=list)
    _all: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    _snapshots: dict[tuple[int, Place, Selector], list[Object]] = field(default_factory=dict)

    def create(self, place: Place, given: Object) -> Object:
        with self.changed:
            key = self._key(place, given["metadata"]["name"])
            if key in self._all:
                raise RefusedError(409, "AlreadyExists", f'{key[0]} "{key[2]}" already exists')
            found = copy.deepcopy(given)
            meta = found["metadata"]
            meta["uid"] = str(uuid.uuid4())
            meta.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            if place.namespace is not None:
                meta["namespace"] = place.namespace
            return self._write(place, key, found, "ADDED")

    def get(self, place: Place, name: str) -> Object:
        with self.changed:
            found = self._all.get(self._key(place, name))
            if found is None:
                raise RefusedError(404, "NotFound", f'{place.resource} "{name}" not found')
            return found

    def replace(self, place: Place, name: str, changed: Object, expected: str | None) -> Object:
        """Write an object; ``expected`` is the resourceVersion that it must have."""
        with self.changed:
            before = self.get(place, name)
            version = before["metadata"]["resourceVersion"]
            if expected is not None and expected != version:
                raise RefusedError(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {place.resource} "{name}": the object has '
                    "been modified; please apply your changes to the latest version",
                )
            if _without_version(changed) == _without_version(before):
                return before  # nothing to write is no new revision
            return self._write(place, self._key(place, name), copy.deepcopy(changed), "MODIFIED")

    def delete(self, place: Place, name: str) -> Object:
        with self.changed:
            before = self.get(place, name)
            found = copy.deepcopy(before)
            del self._all[self._key(place, name)]
            self._note(place, found, "DELETED", before)
            return found

    def listing(
        self, place: Place, selector: Selector, limit: int, token: str
    ) -> tuple[list[Object], int, str, int]:
        """Return objects, their revision, the token of the next page and how many follow."""
        with self.changed:
            revision, start = (self.revision, 0) if not token else self._read_token(token)
            listed = (revision, place, selector)
            found = self._snapshots.get(listed) if token else self._select(place, selector)
            if found is None:
                raise RefusedError(410, "Expired", "The provided continue parameter is too old")
            page = found[start : start + limit] if limit else found
            left = len(found) - start - len(page)
            if left <= 0:
                return page, revision, "", 0
            self._snapshots[listed] = found
            following = json.dumps({"rv": revision, "start": start + len(page)}).encode()
            return page, revision, base64.b64encode(following).decode(), left

    def since(self, place: Place, selector: Selector, revision: int) -> list[Event]:
        """Return what happened after ``revision``. Raises RefusedError where that is forgotten."""
        with self.changed:
            if revision < self.compacted:
                raise RefusedError(
                    410, "Expired", f"too old resource version: {revision} ({self.compacted})"
                )
            if revision > self.revision:
                raise RefusedError(
                    504,
                    "Timeout",
                    f"Too large resource version: {revision}, current: {self.revision}",
                    causes=[{"reason": "ResourceVersionTooLarge"}],
                    retryAfterSeconds=1,
                )
            return [
                replace(event, type=seen)
                for event in self._tail(revision)
                if _is_in(event.place, place) and (seen := event.seen_by(selector)) is not None
            ]

    def compact(self) -> None:
        """Forget history, as etcd does every five minutes; tokens of lists end with it."""
        with self.changed:
            self.compacted = self.revision
            self.log.clear()
            self._snapshots.clear()
            self.changed.notify_all()

    def put_back(self, revision: int) -> None:
        """Count from ``revision`` again, as a cluster does that was restored from a backup."""
        with self.changed:
            self.revision = revision
            self.log.clear()
            self.compacted = 0
            self.changed.notify_all()

    def _tail(self, revision: int) -> list[Event]:
        start = len(self.log)
        while start and self.log[start - 1].revision > revision:
            start -= 1
        return self.log[start:]

    def _select(self, place: Place, selector: Selector) -> list[Object]:
        found = sorted(
            (key, value)
            for key, value in self._all.items()
            if key[0] == place.resource and place.namespace in {None, key[1] or None}
        )
        return [value for _, value in found if selector.takes(value)]

    def _key(self, place: Place, name: str) -> tuple[str, str, str]:
        return (place.resource, place.namespace or "", name)

    def _write(self, place: Place, key: tuple[str, str, str], found: Object, what: str) -> Object:
        before = self._all.get(key)
        self._all[key] = found
        self._note(place, found, what, before)
        return found

    def _note(self, place: Place, found: Object, what: str, before: Object | None) -> None:
        self.revision += 1
        found["metadata"]["resourceVersion"] = str(self.revision)
        self.log.append(Event(self.revision, place, what, copy.deepcopy(found), before))
        self.changed.notify_all()

    def _read_token(self, token: str) -> tuple[int, int]:
        try:
            said = json.loads(base64.b64decode(token))
        except (binascii.Error, ValueError) as exc:
            raise RefusedError(400, "BadRequest", "continue key is not valid") from exc
        return said["rv"], said["start"]


def _is_in(place: Place, asked: Place) -> bool:
    return place.resource == asked.resource and asked.namespace in {None, place.namespace}


def _field(found: Object, path: str) -> Any:
    value: Any = found
    for part in path.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return value


def _without_version(found: Object) -> Object:
    meta = {k: v for k, v in found["metadata"].items() if k != "resourceVersion"}
    return {**found, "metadata": meta}
