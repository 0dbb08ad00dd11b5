"""The status page from the answers of the node's socket, and who may see it.

It shows addresses of the fabric, so it is for who is on the node. A browser
that a foreign page sends here says a foreign name (DNS rebinding) and is refused.
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, Final

from overlay.agent.status import Status
from overlay.mesh.page import Page, render_page

Answers = Mapping[str, Callable[[Mapping[str, Any]], Any]]

_EVENTS: Final = "events"  # a call of that name, where the agent has one
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
REFUSAL: Final = (
    "the status page is for this node alone: ssh -L 9470:localhost:9470 NODE, then open "
    "http://localhost:9470/\n"
)


def status_page(answers: Answers, status: Status) -> str:
    """Return the page as of now."""
    events = answers[_EVENTS]({})["events"] if _EVENTS in answers else None
    return render_page(
        Page(
            status=answers["status"]({}),
            peers=answers["peers"]({})["peers"],
            mesh=answers["mesh"]({}),
            repairs=status.get().counters.repairs,
            events=events,
        )
    )


def may_see(client: str, host: str | None) -> bool:
    """Return whether the page is shown to ``client``, who asked for the host ``host``.

    >>> may_see("127.0.0.1", "localhost:9470"), may_see("::ffff:127.0.0.1", "[::1]:9470")
    (True, True)
    >>> may_see("192.0.2.1", "localhost"), may_see("127.0.0.1", "evil.example")
    (False, False)
    """
    name = (host or "").rpartition("]")[0].removeprefix("[") or (host or "").partition(":")[0]
    if name.lower() != "localhost" and not is_loopback(name):
        return False
    return is_loopback(client)


def is_loopback(text: str) -> bool:
    """Return whether an address, as a socket spells it, is of this host alone."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
