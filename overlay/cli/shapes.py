"""What an answer must look like to be shown, and where one does not.

A shape is a type; a dictionary of shapes (further keys are welcome); a list of
one shape, that of each item; a tuple of shapes, one of which must fit; or None.
"""

from typing import Any, Final, TypeAlias

Shape: TypeAlias = (
    Any  # recursive: type | dict[str, Shape] | list[Shape] | tuple[Shape, ...] | None
)

_TEXT: Final = (str, None)
_TEXTS: Final = ([str], None)
_NUMBER: Final = (int, float)

STATUS: Final[Shape] = {
    "node": {"id": _TEXT, "name": _TEXT},
    "version": _TEXT,
    "phase": _TEXT,
    "subnet": _TEXT,
    "backend": _TEXT,
    "egress": _TEXT,
    "mtu": (int, None),
    "underlay": ({"device": str, "addresses": [str]}, None),
    "store": {"connected": bool, "error": _TEXT, "revision": (int, None)},
    "peers": (int, None),
    "policy": ({"policies": int, "isolated": int, "in_force": bool, "revision": int}, None),
    "uptime_s": _NUMBER,
    "reasons": _TEXTS,
    "problems": ([{"about": str, "text": str}], None),
}
PEERS: Final[Shape] = {
    "peers": [
        {
            "subnet": str,
            "node": str,
            "public": [str],
            "backend": str,
            "mac": _TEXT,
            "flannel": bool,
        }
    ]
}
DIFF: Final[Shape] = {"ops": [str]}
ATTACHMENT: Final[Shape] = {
    "container": str,
    "interface": str,
    "addresses": [str],
    "link": str,
    "arguments": dict,
}
IPAM: Final[Shape] = {
    "attachments": [{**ATTACHMENT, "live": bool, "complete": bool}],
    "strays": [str],
    "ranges": [{"network": str, "used": int, "count": int}],
}
EVENTS: Final[Shape] = {
    "events": [{"number": int, "time": str, "kind": str, "text": str, "times": int, "facts": dict}],
    "last": int,
}
RELEASED: Final[Shape] = {"released": [ATTACHMENT], "links": [str]}
_MEASURED: Final = (int, float, None)
_RECORD: Final = ({"rtt_ms": _MEASURED, "loss": _MEASURED, "silent": bool}, None)
MESH: Final[Shape] = {
    "node": str,
    "error": (str, None),
    "peers": [{"node": str, "subnet": str, "overlay": _RECORD, "underlay": _RECORD}],
    "links": [
        {
            "from": str,
            "to": str,
            "overlay_ms": _MEASURED,
            "overlay_loss": _MEASURED,
            "underlay_ms": _MEASURED,
            "underlay_loss": _MEASURED,
        }
    ],
}
_SIZE: Final = (int, None)
MTU: Final[Shape] = {
    "needed": _SIZE,
    "device_mtu": _SIZE,
    "underlay_mtu": _SIZE,
    "error": (str, None),
    "peers": [{"node": str, "public": str, "out": _SIZE, "back": _SIZE, "fits": (bool, None)}],
}


def misfit(value: Any, shape: Shape) -> str | None:
    """Return the place in ``value`` that does not fit ``shape``, such as ``peers.0.mac``.

    Empty for the whole; None where all fits.
    """
    if isinstance(shape, tuple):
        found = [misfit(value, each) for each in shape]
        return None if None in found else max((f for f in found if f is not None), key=len)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return ""
        return _first((key, misfit(value.get(key), each)) for key, each in shape.items())
    if isinstance(shape, list):
        if not isinstance(value, list):
            return ""
        return _first((str(i), misfit(each, shape[0])) for i, each in enumerate(value))
    if shape is None:
        return None if value is None else ""
    is_bool = isinstance(value, bool) and shape is not bool
    return None if isinstance(value, shape) and not is_bool else ""


def _first(places: Any) -> str | None:
    for name, place in places:
        if place is not None:
            return f"{name}.{place}".rstrip(".")
    return None
