"""CNI network configuration lists for the runtimes that are known."""

from collections.abc import Container
from typing import Any, Final

PLUGIN: Final = "overlay"  # the plugin's type, and its file's name
VERSION: Final = "1.0.0"  # containerd 1.6 and podman 4.3 take no newer one as the first
VERSIONS: Final = ("0.4.0", "1.0.0", "1.1.0")
KUBERNETES: Final = "kubernetes"
_PORTMAP: Final = {"type": "portmap", "capabilities": {"portMappings": True}}
# What a runtime may pass on from its user. Not from a kubelet, whose ranges are
# its own node's podCIDR and no lease.
_BY_USER: Final = ("containerd", "podman")
_CAPABILITIES: Final = {"ips": True, "mac": True, "ipRanges": True}
# File name, network name, plugins chained behind ours.
RUNTIMES: Final[dict[str, tuple[str, str, tuple[dict[str, Any], ...]]]] = {
    KUBERNETES: ("10-overlay.conflist", "overlay", (_PORTMAP,)),
    "containerd": ("20-overlay-containerd.conflist", "overlay-containerd", ()),
    "podman": ("30-overlay-podman.conflist", "overlay-podman", (_PORTMAP,)),
}


def file_name(runtime: str) -> str:
    """Return the name of a runtime's file: runtimes take the first one by name."""
    return RUNTIMES[runtime][0]


def conflist(
    runtime: str, socket: str = "", absent: Container[str] = frozenset()
) -> dict[str, Any]:
    """Return a runtime's network configuration list.

    ``socket`` only where it is another than the usual. Chained plugins that
    are ``absent`` on the host are left out: with one of them named, no pod
    could be attached.
    """
    _file, name, chained = RUNTIMES[runtime]
    ours: dict[str, Any] = {"type": PLUGIN, **({"socket": socket} if socket else {})}
    if runtime in _BY_USER:
        ours["capabilities"] = dict(_CAPABILITIES)
    return {
        "cniVersion": VERSION,
        "cniVersions": list(VERSIONS),
        "name": name,
        "plugins": [ours, *(plugin for plugin in chained if plugin["type"] not in absent)],
    }


def chained_plugins(runtime: str) -> tuple[str, ...]:
    """Return the types of the plugins that are chained behind ours."""
    return tuple(str(plugin["type"]) for plugin in RUNTIMES[runtime][2])
