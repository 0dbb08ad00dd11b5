"""List and watch through the real client, on an API server that is healthy, gone or lies."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from lightkube.resources.core_v1 import Pod

from overlay.model.errors import LeaseFormatError
from overlay.store.base import StoreAccessError, StoreError, StoreUnavailableError
from overlay.store.kube_client import EVERYWHERE, Kind, KubeClient
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_errors import ForbiddenError, KubeUnavailableError
from overlay.store.kube_watch import Found, KubeWatch, Pace
from tests.etcd.support import eventually
from tests.kube.api_server import ApiServer, Fault
from tests.kube.objects import Place

BLUE = Place("pods", "blue")
QUICK = Pace(page=3, idle_s=5.0, backoff_s=(0.05, 0.2))


def label(raw: bytes) -> str:
    """Keep the label ``app`` of a pod; refuse one that is no word."""
    text = msgspec.json.decode(raw)["metadata"].get("labels", {}).get("app", "")
    if not str(text).isalpha():
        msg = f"label app {text!r} is no word"
        raise LeaseFormatError(msg)
    return str(text)


PODS = Kind(Pod, "pods", label)


def pod(name: str, app: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"app": app}}, "spec": {}}


@dataclass
class Seen:
    objects: dict[str, Found[str]] = field(default_factory=dict)
    revision: int = 0
    listings: int = 0
    changes: list[frozenset[str]] = field(default_factory=list)
    troubles: list[StoreError | None] = field(default_factory=list)

    def take(
        self, objects: Mapping[str, Found[str]], revision: int, changed: frozenset[str] | None
    ) -> None:
        self.objects, self.revision = dict(objects), revision
        if changed is None:
            self.listings += 1
        else:
            self.changes.append(changed)

    @property
    def names(self) -> set[str]:
        return {key.partition("/")[2] for key in self.objects}

    def wait(self, condition: Callable[["Seen"], bool]) -> None:
        eventually(lambda: condition(self), 20.0)

    def wait_for(self, *names: str) -> None:
        self.wait(lambda seen: seen.names == set(names))


@contextmanager
def watching(
    access: KubeAccess, pace: Pace = QUICK, namespace: str = EVERYWHERE, **selectors: str
) -> Iterator[Seen]:
    seen, stop, client = Seen(), threading.Event(), KubeClient(access)
    watch = KubeWatch(client, PODS, namespace=namespace, selectors=selectors, pace=pace)
    thread = threading.Thread(target=watch.run, args=(seen.take, seen.troubles.append, stop))
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(20)
        client.close()
        assert not thread.is_alive()


def test_list_is_paged_at_one_revision_and_the_watch_goes_on_from_there(
    api: ApiServer, access: KubeAccess
) -> None:
    for number in range(7):
        api.objects.create(BLUE, pod(f"p{number}"))
    with watching(access) as seen:
        seen.wait_for(*(f"p{n}" for n in range(7)))
        pages = api.asked("list", "pods")
        assert [p.query.get("limit") for p in pages] == ["3", "3", "3"]
        assert [bool(p.query.get("continue")) for p in pages] == [False, True, True]
        api.objects.create(BLUE, pod("late"))
        api.objects.delete(BLUE, "p3")
        seen.wait_for("late", *(f"p{n}" for n in range(7) if n != 3))
        assert seen.objects["blue/late"].value == "a"
        assert seen.revision == api.objects.revision
    assert seen.listings == 1
    assert not seen.troubles
    watch = api.asked("watch", "pods")[0].query
    assert watch["allowWatchBookmarks"] == "true"
    assert 300 <= int(watch["timeoutSeconds"]) <= 600


def test_one_namespace_and_a_selector_are_asked_of_the_server(
    api: ApiServer, access: KubeAccess
) -> None:
    api.objects.create(BLUE, pod("mine"))
    api.objects.create(BLUE, pod("other"))
    api.objects.create(Place("pods", "red"), pod("mine"))
    with watching(access, namespace="blue", fieldSelector="metadata.name=mine") as seen:
        seen.wait(lambda s: set(s.objects) == {"blue/mine"})
        api.objects.create(Place("pods", "green"), pod("mine"))
        api.objects.delete(BLUE, "mine")
        seen.wait_for()


def test_what_is_kept_did_not_change_so_nothing_is_delivered(
    api: ApiServer, access: KubeAccess
) -> None:
    api.objects.create(BLUE, pod("p"))
    with watching(access) as seen:
        seen.wait_for("p")
        before = seen.objects["blue/p"]
        quiet = {**api.objects.get(BLUE, "p"), "spec": {"nodeName": "n"}}
        api.objects.replace(BLUE, "p", quiet, None)
        api.objects.create(BLUE, pod("q"))
        seen.wait_for("p", "q")
        assert seen.objects["blue/p"] is before
    assert seen.changes == [frozenset({"blue/q"})]


def test_a_break_is_taken_up_at_the_last_bookmark_without_a_listing(
    api: ApiServer, access: KubeAccess
) -> None:
    api.objects.create(BLUE, pod("p"))
    api.bookmark_s = 0.1
    with watching(access) as seen:
        seen.wait_for("p")
        eventually(lambda: api.watches == 1, 20.0)
        api.objects.create(Place("nodes"), {"metadata": {"name": "n"}})
        marked, sent = api.objects.revision, api.bookmarks
        eventually(lambda: api.bookmarks > sent + 1, 20.0)
        # What comes before the mark is forgotten: only who has read it can go on.
        api.objects.compact()
        api.stop()
        api.objects.create(BLUE, pod("q"))
        api.start()
        seen.wait_for("p", "q")
    assert seen.listings == 1
    assert int(api.asked("watch", "pods")[-1].query["resourceVersion"]) >= marked


@pytest.mark.parametrize("is_event", [False, True], ids=["as a status", "as an event"])
def test_revision_that_is_gone_lists_again(
    api: ApiServer, access: KubeAccess, *, is_event: bool
) -> None:
    api.begins_with_gone_event = is_event
    api.bookmark_s = 3600
    api.objects.create(BLUE, pod("p"))
    api.objects.create(BLUE, pod("q"))
    with watching(access) as seen:
        seen.wait_for("p", "q")
        api.stop()
        api.objects.delete(BLUE, "p")
        api.objects.create(BLUE, pod("r"))
        api.objects.compact()
        api.start()
        seen.wait_for("q", "r")
        assert seen.listings == 2


def test_server_that_was_put_back_is_listed_again(api: ApiServer, access: KubeAccess) -> None:
    api.objects.create(BLUE, pod("p"))
    with watching(access) as seen:
        seen.wait_for("p")
        api.objects.put_back(50)
        seen.wait(lambda s: s.listings == 2)
        assert seen.revision == 50
        api.objects.create(BLUE, pod("q"))
        seen.wait_for("p", "q")


def test_list_whose_token_ends_is_begun_anew(api: ApiServer, access: KubeAccess) -> None:
    for number in range(5):
        api.objects.create(BLUE, pod(f"p{number}"))
    api.faults = [Fault("410", "list", skip=1)]
    with watching(access) as seen:
        seen.wait_for(*(f"p{n}" for n in range(5)))
    assert not seen.troubles


@pytest.mark.parametrize("kind", ["500", "503", "429", "reset", "broken", "page", "hole"])
def test_fault_is_told_once_and_got_over(api: ApiServer, access: KubeAccess, kind: str) -> None:
    api.objects.create(BLUE, pod("p"))
    times = 1 if kind in {"hole", "429"} else 3
    api.faults = [Fault(kind, "list", times), Fault(kind, "watch", times)]
    access = dataclasses.replace(access, timeout_s=0.5)
    with watching(access) as seen:
        seen.wait_for("p")
        seen.wait(lambda s: len(s.troubles) >= 2 and s.troubles[-1] is None)
        api.objects.create(BLUE, pod("q"))
        seen.wait_for("p", "q")
    assert all(t is None or isinstance(t, StoreUnavailableError) for t in seen.troubles)
    errors = [t for t in seen.troubles if t is not None]
    assert api.url in str(errors[0])
    if kind == "429":
        assert isinstance(errors[0], KubeUnavailableError)
        assert errors[0].wait_s == 1.0


def test_half_open_watch_is_noticed_by_its_silence(api: ApiServer, access: KubeAccess) -> None:
    api.objects.create(BLUE, pod("p"))
    with watching(access, dataclasses.replace(QUICK, idle_s=1.0)) as seen:
        seen.wait_for("p")
        eventually(lambda: api.watches == 1, 20.0)
        api.is_silent = True
        api.objects.create(BLUE, pod("q"))
        seen.wait(lambda s: bool(s.troubles))
        api.is_silent = False
        seen.wait_for("p", "q")
    assert seen.listings == 1


def test_server_that_is_away_and_back(api: ApiServer, access: KubeAccess) -> None:
    api.objects.create(BLUE, pod("p"))
    with watching(access) as seen:
        seen.wait_for("p")
        api.stop()
        seen.wait(lambda s: bool(s.troubles))
        api.objects.create(BLUE, pod("q"))
        assert seen.names == {"p"}
        api.start()
        seen.wait_for("p", "q")
        seen.wait(lambda s: s.troubles[-1] is None)


def test_watch_that_the_server_ends_is_taken_up_without_a_word(
    api: ApiServer, access: KubeAccess
) -> None:
    with watching(access, dataclasses.replace(QUICK, server_s=(1, 1))) as seen:
        eventually(lambda: len(api.asked("watch", "pods")) >= 3, 20.0)
        api.objects.create(BLUE, pod("q"))
        seen.wait_for("q")
    assert seen.listings == 1
    assert not seen.troubles


def test_object_that_cannot_be_read_is_named_and_stays_as_it_was(
    api: ApiServer, access: KubeAccess
) -> None:
    api.objects.create(BLUE, pod("p"))
    api.objects.create(BLUE, pod("bad", app="1"))
    with watching(access) as seen:
        seen.wait_for("p", "bad")
        assert seen.objects["blue/bad"].value is None
        assert seen.objects["blue/bad"].error == "label app '1' is no word"
        worse = {**api.objects.get(BLUE, "p")}
        worse["metadata"] = {**worse["metadata"], "labels": {"app": "?"}}
        api.objects.replace(BLUE, "p", worse, None)
        seen.wait(lambda s: s.objects["blue/p"].error is not None)
        assert seen.objects["blue/p"].value == "a"
        api.objects.delete(BLUE, "p")
        api.objects.create(BLUE, pod("p", app="2"))
        seen.wait(lambda s: s.objects["blue/p"].value is None)
    assert not seen.troubles


def test_missing_permission_names_verb_and_resource(api: ApiServer, access: KubeAccess) -> None:
    api.forbidden = {("watch", "pods")}
    with watching(access) as seen:
        seen.wait(lambda s: bool(s.troubles))
        error = seen.troubles[0]
        assert isinstance(error, ForbiddenError)
        for words in ("may not watch pods", "ClusterRole the verb watch on pods", "cannot watch"):
            assert words in str(error)
        api.forbidden = set()
        api.objects.create(BLUE, pod("p"))
        seen.wait_for("p")


def test_token_that_is_rotated_is_read_again(
    api: ApiServer, access: KubeAccess, tmp_path: Any
) -> None:
    folder = api.account(tmp_path / "account")
    inside = dataclasses.replace(access, kubeconfig=None, api_url=api.url, account_dir=folder)
    with watching(inside) as seen:
        api.objects.create(BLUE, pod("p"))
        seen.wait_for("p")
        api.tokens = {"another"}
        api.stop()
        api.start()
        seen.wait(lambda s: any(isinstance(t, StoreAccessError) for t in s.troubles))
        (folder / "token").write_text("another")
        api.objects.create(BLUE, pod("q"))
        seen.wait_for("p", "q")
