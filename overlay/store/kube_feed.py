"""One watch of a fabric in Kubernetes: nodes, network config and key become views."""

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from overlay.model.fabric_key import FabricKeys
from overlay.model.lease import LeaseView
from overlay.store.base import StopSignal, StoreError
from overlay.store.kube_crew import Crew
from overlay.store.kube_net_config import NetConfigFile
from overlay.store.kube_node import NodeFacts
from overlay.store.kube_secret import FabricSecret, StoredKeys
from overlay.store.kube_table import NodeTable
from overlay.store.kube_watch import Either, Found, KubeWatch

log = logging.getLogger(__name__)

_LOOK_S: Final = 2.0  # how often the config's file is read, and the end of a key looked at
_JOIN_S: Final = 5.0


class Feed:
    """Puts together what several threads learn, and delivers a view after every change.

    While nodes are in trouble, what others learn waits: a view says that the
    store answers.
    """

    def __init__(
        self,
        table: NodeTable,
        config: NetConfigFile,
        secret: FabricSecret,
        deliver: Callable[[LeaseView], None],
    ) -> None:
        self._table = table
        self._config = config
        self._secret = secret
        self._deliver = deliver
        self._lock = threading.Lock()
        self._is_listed = False
        self._stored: Found[StoredKeys] | None = None
        self._no_key: str | None = None  # why the Secret cannot be read
        self._error: StoreError | None = None
        self._is_pending = False
        self.last: LeaseView | None = None

    @property
    def is_fresh(self) -> bool:
        """Return whether nodes come in, so that what is known of this one can be relied on."""
        return self._is_listed and self._error is None

    @property
    def own(self) -> NodeFacts | None:
        """Return this node as it was last seen."""
        return self._table.own

    def run(
        self,
        nodes: KubeWatch[NodeFacts],
        keys: KubeWatch[StoredKeys],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Follow nodes in this thread, the rest in threads that end with it.

        A fault in one of those ends this one too, and is raised.
        """

        def told(error: StoreError | None) -> None:
            with self._lock:
                self._error = error
                trouble(error)
                if error is None and self._is_pending:
                    self._tell()

        done = threading.Event()
        crew = Crew(done, stop)
        with self._lock:
            self._table.set_config(self._config.read())
        crew.start(functools.partial(self._look, crew), "kube-look")
        crew.start(
            functools.partial(keys.run, self._take_keys, self._key_trouble, crew), "kube-keys"
        )
        try:
            nodes.run(self._take_nodes, told, Either(stop, crew.is_set))
        finally:
            done.set()
        crew.join(_JOIN_S)

    def _take_nodes(
        self,
        objects: Mapping[str, Found[NodeFacts]],
        revision: int,
        changed: frozenset[str] | None,
    ) -> None:
        with self._lock:
            self._is_listed = True
            if self._table.take(objects, revision, changed):
                self._tell()

    def _take_keys(
        self,
        objects: Mapping[str, Found[StoredKeys]],
        _revision: int,
        _changed: frozenset[str] | None,
    ) -> None:
        with self._lock:
            self._stored, self._no_key = next(iter(objects.values()), None), None
            self._tell_of_keys()

    def _key_trouble(self, error: StoreError | None) -> None:
        # A server that is away is told of by the nodes; only what concerns the key alone is here.
        with self._lock:
            if error is None or self._stored is None:
                self._no_key = None if error is None else f"no key of the fabric: {error}"
                self._tell_of_keys()

    def _look(self, stop: StopSignal) -> None:
        while not stop.wait(_LOOK_S):
            with self._lock:
                config = self._config.read()
                if config is not self._table.config:
                    log.info("the network config in %s changed", self._config.path)
                    self._table.set_config(config)
                    self._tell()
                else:
                    self._tell_of_keys()

    def _tell_of_keys(self) -> None:
        keys = self._secret.counting(self._stored)
        if self._no_key is not None:
            keys = FabricKeys(error=self._no_key)
        if keys != self._table.keys:
            self._table.keys = keys
            self._tell()

    def _tell(self) -> None:
        self._is_pending = not self.is_fresh
        if not self._is_pending:
            self.last = self._table.view()
            self._deliver(self.last)
