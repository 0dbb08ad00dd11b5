"""Whether NetworkManager leaves our devices alone.

It may set a MAC address or take away addresses of links that it manages
(flannel#1795). NetworkManager.conf(5): ``unmanaged-devices`` in [keyfile], or a
[device...] section with ``match-device`` and ``managed=0``.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.keyfile import boolean, drop_ins, settings
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, warning
from overlay.kernel.host.daemons import running

_NAME: Final = "NetworkManager"
_MAIN: Final = "etc/NetworkManager/NetworkManager.conf"
# The system's folder is read first, so that what an operator wrote wins.
_FOLDERS: Final = (
    "etc/NetworkManager/conf.d",
    "run/NetworkManager/conf.d",
    "usr/lib/NetworkManager/conf.d",
)
_LINKS: Final = ";".join(
    f"interface-name:{pattern}"
    for pattern in ("overlay.*", "overlay-v6.*", "ovl4.*", "ovl6.*", "opod*")
)
_REMEDY: Final = (
    f"printf '[keyfile]\\nunmanaged-devices+={_LINKS}\\n' "
    "> /etc/NetworkManager/conf.d/zz-overlay.conf && nmcli general reload conf"
)


def _run(facts: Facts) -> Iterator[Verdict]:
    if not running({_NAME}):
        yield Fine("does not run here")
        return
    left_alone = _unmanaged(facts.places.root)
    for name in [d.name for d in facts.fabric().devices] or ["overlay.1"]:
        if any(fnmatchcase(name, pattern) for pattern in left_alone):
            yield Fine(f"leaves {name} alone")
        else:
            reason = f"NetworkManager runs, and no file of it says to leave {name} alone"
            yield warning(f"{reason}: it may change its address or MAC", _REMEDY)


def _unmanaged(root: Path) -> list[str]:
    """Return the patterns of link names that are not managed."""
    files = [*drop_ins(root, _FOLDERS, "*.conf")]
    if (root / _MAIN).exists():
        files.insert(0, root / _MAIN)
    found: list[str] = []
    matches: dict[str, list[str]] = {}
    for setting in settings(files):
        key = setting.key.rstrip("+")
        if setting.section == "keyfile" and key == "unmanaged-devices":
            found = [*(found if setting.key.endswith("+") else []), *_names(setting.value)]
        elif setting.section.startswith("device"):
            if key == "match-device":
                matches[setting.section] = _names(setting.value)
            elif key == "managed" and not boolean(setting.value, default=True):
                found += matches.get(setting.section, [])
    return found


def _names(text: str) -> list[str]:
    words = [word.strip() for word in text.replace(";", ",").split(",")]
    prefix = "interface-name:"
    return [word.removeprefix(prefix).lstrip("=~") for word in words if word.startswith(prefix)]


CHECK: Final = Check("network-manager", "NetworkManager's files, if it runs", _run)
