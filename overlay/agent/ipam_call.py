"""What ``overlayctl ipam`` asks over the node's socket: who has which address, and to free some."""

from collections.abc import Callable, Mapping
from typing import Any

from overlay.agent.attachments import Attachments
from overlay.agent.cni_teardown import Teardown
from overlay.agent.status import Status


def ipam_calls(
    status: Status, attachments: Attachments, teardown: Teardown
) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Return the calls, by name. They raise KernelError and OSError."""

    def listed(_given: Mapping[str, Any]) -> dict[str, Any]:
        links, held, strays = teardown.look()
        return {
            "attachments": [{**a.to_json(), "live": not a.link or a.link in links} for a in held],
            "strays": strays,
            "ranges": ranges(),
        }

    def ranges() -> list[dict[str, Any]]:
        site = status.get().site
        networks = site.own.subnet.networks() if site is not None else ()
        usages = [(network, attachments.usage(network)) for network in networks]
        return [
            {"network": str(network), "used": used, "count": count}
            for network, (used, count) in usages
        ]

    def release(given: Mapping[str, Any]) -> dict[str, Any]:
        """Detach and release every interface of a container, or every link nobody knows."""
        if given.get("strays") is True:
            return {"released": [], "links": teardown.release_strays()}
        found = teardown.release(given.get("container"))
        return {"released": [a.to_json() for a in found], "links": []}

    return {"ipam": listed, "ipam-release": release}
