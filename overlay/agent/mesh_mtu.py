"""Path MTUs to all peers, searched a few at a time; belongs to the mesh's thread."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from overlay.agent.mesh_peers import FLOOR, UDP_HEADERS, Peer
from overlay.mesh.path_mtu import PathMtu, Search
from overlay.mesh.seal import node_tag
from overlay.mesh.wire import LEAST_BYTES, MOST_BYTES, Kind, Message, Path

_AT_ONCE: Final = 16  # peers; each may have 32 datagrams of full size under way
_ROUND_S: Final = 0.5  # how long an echo is waited for
_DIRECTIONS: Final = (Path.MTU_OUT, Path.MTU_BACK)

Send = Callable[[Peer, Message, int], None]  # and the length in bytes of UDP payload


class PathMtus:
    """``results`` by tag is what the last search found; a new one replaces it when it is over."""

    def __init__(self, node_id: str, nonce: Callable[[], bytes], send: Send) -> None:
        self._own = node_tag(node_id)
        self._nonce = nonce
        self._send = send
        self._waiting: deque[Peer] = deque()
        self._active: dict[bytes, tuple[Peer, Mapping[Path, Search]]] = {}
        self._asked: dict[bytes, tuple[bytes, Path, int]] = {}  # by nonce: peer, direction, size
        self._ceiling = 0
        self._next_at = 0.0
        self.results: dict[bytes, PathMtu] = {}
        self.searches = 0  # that are over

    @property
    def is_busy(self) -> bool:
        """Return whether a search is under way."""
        return bool(self._waiting or self._active)

    @property
    def due_at(self) -> float:
        """Return when ``step`` is to be called next."""
        return self._next_at if self.is_busy else float("inf")

    def start(self, peers: Iterable[Peer], ceiling: int) -> None:
        """Begin a search up to ``ceiling`` bytes, unless one is under way."""
        if self.is_busy:
            return
        self._ceiling = min(ceiling, MOST_BYTES)
        self._waiting.extend(peers)
        known = {peer.tag for peer in self._waiting}
        self.results = {tag: found for tag, found in self.results.items() if tag in known}
        self._next_at = 0.0

    def step(self, now: float) -> None:
        """Send what is to be sent; whatever is still asked for counts as not come back."""
        for _, searches in self._active.values():
            for search in searches.values():
                search.waited()
        self._asked.clear()
        self._settle()
        while self._waiting and len(self._active) < _AT_ONCE:
            peer = self._waiting.popleft()
            floor = FLOOR[peer.family]
            searches = {path: Search(floor, self._ceiling) for path in _DIRECTIONS}
            self._active[peer.tag] = (peer, searches)
        for peer, searches in self._active.values():
            for path, search in searches.items():
                for size in search.sizes():
                    self._ask(peer, path, size)
        self._next_at = now + _ROUND_S

    def heard(self, echo: Message, length: int) -> bool:
        """Take note of an echo of ``length`` bytes; return whether anything more is waited for."""
        asked = self._asked.pop(echo.nonce, None)
        if asked is None or asked[0] != echo.sender or asked[1] is not echo.path:
            return bool(self._asked)
        tag, path, size = asked
        peer, searches = self._active[tag]
        if path is Path.MTU_OUT or length >= size - UDP_HEADERS[peer.family]:
            searches[path].heard(size)
        self._settle()
        if not self._asked:
            self._next_at = 0.0  # all came back: nothing is worth waiting for
        return bool(self._asked)

    def _settle(self) -> None:
        for tag, (_, searches) in tuple(self._active.items()):
            if all(search.is_done for search in searches.values()):
                out, back = (searches[path].result for path in _DIRECTIONS)
                self.results[tag] = PathMtu(out, back)
                del self._active[tag]
                if not self.is_busy:
                    self.searches += 1

    def _ask(self, peer: Peer, path: Path, size: int) -> None:
        nonce = self._nonce()
        self._asked[nonce] = (peer.tag, path, size)
        length = size - UDP_HEADERS[peer.family]
        wanted = length if path is Path.MTU_BACK else 0
        message = Message(Kind.PROBE, path, self._own, peer.tag, nonce, wanted)
        self._send(peer, message, length if path is Path.MTU_OUT else LEAST_BYTES)
