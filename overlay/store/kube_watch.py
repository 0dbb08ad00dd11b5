"""List all objects of one kind, then follow them: the same for nodes, pods or policies.

A list is read in pages at one revision; the watch goes on from there, with
bookmarks, and is taken up at the last revision seen after any break. Where
that revision is gone (410), everything is listed again. What cannot be read
is named, and leaves what was read of the same object before in place.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from overlay.model.errors import LeaseFormatError
from overlay.store.base import StopSignal, StoreError
from overlay.store.kube_client import Kind, KubeClient
from overlay.store.kube_errors import (
    Asked,
    ForbiddenError,
    KubeUnavailableError,
    ResourceGoneError,
    Status,
    refusal,
)
from overlay.store.kube_stream import EndedError, KubeStream

log = logging.getLogger(__name__)

T = TypeVar("T")

_BROKEN_MOST: Final = 3  # answers in a row that cannot be read; then everything is listed


class UnreadableError(KubeUnavailableError):
    """The API server says what nobody can read."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is asked at once, and how long is waited for what, in seconds.

    The server ends a watch after ``server_s``, drawn at random, and sends a
    bookmark every minute or so: ``idle_s`` of silence is a dead connection.
    """

    page: int = 500  # objects; an answer for 500 nodes has some 5 MB
    idle_s: float = 90.0
    server_s: tuple[int, int] = (300, 600)
    backoff_s: tuple[float, float] = (0.2, 30.0)  # first and longest pause after a failure
    refused_s: float = 300.0  # longest pause where the account may not, and nothing else waits


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """One object: ``value`` is what ``Kind.decode`` kept, ``revision`` when that last changed.

    ``error`` says why the newest state cannot be read; ``value`` is the last
    one that could then, or what ``Kind.salvage`` made of it (``is_salvaged``),
    or None.
    """

    key: str  # NAMESPACE/NAME, or NAME for what has no namespace
    uid: str
    revision: int
    value: T | None
    error: str | None = None
    is_salvaged: bool = False


# Gets all objects by key, the revision that they are of, and the keys that changed since the last
# call; None after a listing. The mapping is the watch's own: read it, do not keep it.
Deliver = Callable[[Mapping[str, Found[T]], int, frozenset[str] | None], None]


class _Meta(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 - the API's name


class _Object(msgspec.Struct):
    metadata: _Meta


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815 - the API's name
    continue_: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw]


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Backoff:
    """Pauses that double while turns are short, at random so that agents do not come in step."""

    def __init__(
        self,
        range_s: tuple[float, float],
        uniform: Callable[[float, float], float],
        clock: Callable[[], float],
    ) -> None:
        self._range_s = range_s
        self._uniform = uniform
        self._clock = clock
        self._next_s = range_s[0]
        self._begun_at = clock()

    def begin(self) -> None:
        """Note that a turn begins."""
        self._begun_at = self._clock()

    def pause_s(self, least_s: float = 0.0, most_s: float | None = None) -> float:
        """Return how long to wait after the turn that ends now; ``most_s`` is instead of ours."""
        if self._clock() - self._begun_at > 2 * self._next_s:
            self._next_s = self._range_s[0]
        longest_s = self._range_s[1] if most_s is None else most_s
        pause_s = max(min(self._next_s, longest_s), least_s)
        self._next_s = min(self._next_s * 2, longest_s)
        return pause_s * self._uniform(*((1.0, 1.5) if least_s else (0.5, 1.0)))


@dataclass(frozen=True, slots=True)
class Either:
    """A signal to stop, or something else that ends a stream."""

    stop: StopSignal
    other: Callable[[], bool]

    def is_set(self) -> bool:
        """Return whether to end."""
        return self.stop.is_set() or self.other()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds to be told to stop; return whether to end."""
        return self.stop.wait(timeout) or self.other()


class KubeWatch(Generic[T]):
    """One watch of one kind of object, in one namespace, everywhere, or without namespaces."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[T],
        *,
        namespace: str | None = None,
        selectors: Mapping[str, str] | None = None,
        pace: Pace | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
        on_list: Callable[[], None] = lambda: None,
        is_vital: bool = False,
    ) -> None:
        """``on_list`` is called whenever a listing begins.

        Without one that ``is_vital`` nothing goes on: a permission that is
        missing is asked for as often as everything, with account and
        kubeconfig read anew. For another one that would break the
        connections that the rest lives by.
        """
        self._is_vital = is_vital
        self._client = client
        self._kind = kind
        self._on_list = on_list
        self._namespace = namespace
        self._selectors = dict(selectors or {})
        self._pace = pace if pace is not None else Pace()
        self._uniform = uniform
        self._clock = clock
        self._asked = Asked("list", kind.plural, "", namespace or "")
        self._objects: dict[str, Found[T]] = {}
        self._revision = 0
        self._must_list = True
        self._broken = 0  # answers in a row that could not be read

    def run(
        self,
        deliver: Deliver[T],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver until ``stop`` is set.

        What fails is told to ``trouble``, once for each kind of error in a
        row, and tried again for ever with growing pauses; None once it works.
        """
        told: type[StoreError] | None = None
        backoff = _Backoff(self._pace.backoff_s, self._uniform, self._clock)
        while not stop.is_set():
            backoff.begin()
            wait_s, most_s = 0.0, None  # at least: that the server asked for
            try:
                for changed in self._turn(stop):
                    if told is not None:
                        told = None
                        trouble(None)
                    if changed is None or changed:
                        deliver(self._objects, self._revision, changed)
            except EndedError as exc:
                log.debug("%s", exc)
            except ResourceGoneError as exc:
                log.info("listing %s again: %s", self._kind.plural, exc)
                self._must_list = True
            except StoreError as exc:
                if told is not type(exc):
                    told = type(exc)
                    trouble(exc)
                wait_s = self._note_break(exc)
                if self._is_left_alone(exc):
                    most_s = self._pace.refused_s
            stop.wait(backoff.pause_s(wait_s, most_s))

    def relist(self) -> None:
        """List everything again, soon: what ``Kind.decode`` keeps is more than before.

        For any thread. A listing that runs meanwhile may be taken for the one
        that is asked for; ``on_list`` tells which it is.
        """
        self._must_list = True

    def list_once(self) -> tuple[Mapping[str, Found[T]], int]:
        """Return all objects and the revision that they are of."""
        self._list(None)
        return self._objects, self._revision

    def _note_break(self, exc: StoreError) -> float:
        """Count what cannot be read; return how long the server wants to be left, in seconds."""
        self._broken += isinstance(exc, UnreadableError)
        if self._broken >= _BROKEN_MOST:  # it would come again for ever
            self._broken, self._must_list = 0, True
        if isinstance(exc, KubeUnavailableError):
            return exc.wait_s
        if not self._is_left_alone(exc):
            self._client.reconnect()  # the account may be another by now
        return 0.0

    def _is_left_alone(self, exc: StoreError) -> bool:
        return isinstance(exc, ForbiddenError) and not self._is_vital

    def _turn(self, stop: StopSignal) -> Iterator[frozenset[str] | None]:
        """List where that is needed, then follow; yield None for a list, then what changed."""
        if self._must_list:
            self._list(stop)
            if stop.is_set():
                return
            yield None
        yield from self._follow(stop)

    def _list(self, stop: StopSignal | None) -> None:
        self._on_list()
        found: dict[str, Found[T]] = {}
        token = ""
        while True:
            params = {**self._selectors, "limit": str(self._pace.page)}
            if token:
                params["continue"] = token
            body = self._client.call("list", self._kind, namespace=self._namespace, params=params)
            try:
                page = msgspec.json.decode(body, type=_Page)
            except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                raise self._nonsense(exc) from exc
            for raw in page.items:
                item = self._read(bytes(raw))
                found[item.key] = item
            token = page.metadata.continue_
            if not token or (stop is not None and stop.is_set()):
                break
        self._revision = self._number(page.metadata.resourceVersion)
        self._objects = found
        self._must_list = False

    def _follow(self, stop: StopSignal) -> Iterator[frozenset[str]]:
        """Apply changes as they come; yield the keys, first none of them once it runs."""
        pace = self._pace
        params = {
            **self._selectors,
            "resourceVersion": str(self._revision),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(self._uniform(*pace.server_s))),
        }
        with KubeStream(self._client, self._kind, self._namespace, params, pace.idle_s) as stream:
            yield frozenset()
            end = Either(stop, lambda: self._must_list)
            while not end.is_set():
                line = stream.next(pace.idle_s, end)
                if line is None:
                    continue  # silence for too long is the stream's own error
                changed = set(self._apply(line))
                # What waits already belongs to the same delivery.
                while (more := stream.waiting()) is not None:
                    changed.update(self._apply(more))
                self._broken = 0
                yield frozenset(changed)

    def _apply(self, line: bytes) -> Iterator[str]:
        """Take over one event; yield the key of what changed by it."""
        try:
            event = msgspec.json.decode(line, type=_Event)
            raw = bytes(event.object)
            if event.type == "ERROR":
                status = msgspec.json.decode(raw, type=Status)
                raise refusal(status, self._watched, self._client.url)
            meta = msgspec.json.decode(raw, type=_Object).metadata
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise self._nonsense(exc) from exc
        revision = self._number(meta.resourceVersion)
        if event.type == "BOOKMARK":
            self._revision = max(self._revision, revision)
            return
        key = _key(meta)
        if event.type == "DELETED":
            if self._objects.pop(key, None) is not None:
                yield key
        elif event.type in {"ADDED", "MODIFIED"}:
            before, now = self._objects.get(key), self._read(raw)
            self._objects[key] = now
            if now is not before:
                yield key
        self._revision = max(self._revision, revision)

    def _read(self, raw: bytes) -> Found[T]:
        """Return the object in ``raw``; the one that is known where nothing of it changed."""
        try:
            return read_object(self._kind, raw, self._objects)
        except ValueError as exc:
            raise self._nonsense(exc) from exc

    @property
    def _watched(self) -> Asked:
        return Asked("watch", self._kind.plural, "", self._namespace or "")

    def _number(self, text: str) -> int:
        try:
            return _revision(text)
        except ValueError as exc:
            raise self._nonsense(exc) from exc

    def _nonsense(self, exc: Exception) -> StoreError:
        return UnreadableError(
            f"Kubernetes API at {self._client.url}: {self._asked.plural}: the answer cannot be "
            f"read: {exc}"
        )


def read_object(
    kind: Kind[T], raw: bytes, known_by_key: Mapping[str, Found[T]] | None = None
) -> Found[T]:
    """Return the object in ``raw``; the known one where nothing of it changed.

    Where what ``kind`` keeps cannot be read, the known value stays. Raises
    ValueError for what is no object at all.
    """
    try:
        meta = msgspec.json.decode(raw, type=_Object).metadata
    except msgspec.MsgspecError as exc:
        raise ValueError(str(exc)) from exc
    key, revision = _key(meta), _revision(meta.resourceVersion)
    known = (known_by_key or {}).get(key)
    if known is not None and known.uid != meta.uid:
        known = None
    value = known.value if known is not None and not known.is_salvaged else None
    error, is_salvaged = None, False
    try:
        value = kind.decode(raw)
    except LeaseFormatError as exc:
        error = str(exc)
        if value is None:
            value, is_salvaged = kind.salvage(raw), True
    if known is not None and (known.value, known.error) == (value, error):
        return known
    return Found(key, meta.uid, revision, value, error, is_salvaged)


def _revision(text: str) -> int:
    """Return a resource version as a number, as the API has promised it to be since 1.35."""
    if not text.isdecimal() or len(text) > 20:
        msg = f"resourceVersion {text[:40]!r} is no number"
        raise ValueError(msg)
    return int(text)


def _key(meta: _Meta) -> str:
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
