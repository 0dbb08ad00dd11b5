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
    f"printf '[device-overlay]\\nmatch-device={_LINKS}\\nmanaged=0\\n' "
    "> /etc/NetworkManager/conf.d/zz-overlay.conf && nmcli general reload conf"
)


def _run(facts: Facts) -> Iterator[Verdict]:
    if not running({_NAME}):
        yield Fine("does not run here")
        return
    left_alone = _unmanaged(facts.places.root)
    for name in [d.name for d in facts.fabric().devices] or ["overlay.1"]:
        if any(_takes(specs, name) for specs in left_alone):
            yield Fine(f"leaves {name} alone")
        else:
            reason = f"NetworkManager runs, and no file of it says to leave {name} alone"
            yield warning(f"{reason}: it may change its address or MAC", _REMEDY)


def _unmanaged(root: Path) -> list[list[str]]:
    """Return lists of device specs; what one of the lists takes is not managed."""
    files = [*drop_ins(root, _FOLDERS, "*.conf")]
    if (root / _MAIN).exists():
        files.insert(0, root / _MAIN)
    keyfile: list[str] = []
    matches: dict[str, list[str]] = {}
    found: list[list[str]] = []
    for setting in settings(files):
        key = setting.key.rstrip("+")
        if setting.section == "keyfile" and key == "unmanaged-devices":
            keyfile = [*(keyfile if setting.key.endswith("+") else []), *_specs(setting.value)]
        elif setting.section.startswith("device"):
            if key == "match-device":
                matches[setting.section] = _specs(setting.value)
            elif key == "managed" and not boolean(setting.value, default=True):
                # Without match-device a section is of every device.
                found.append(matches.setdefault(setting.section, ["*"]))
    return [keyfile, *found]


def _specs(text: str) -> list[str]:
    return [word.strip() for word in text.replace(";", ",").split(",") if word.strip()]


def _takes(specs: list[str], link: str) -> bool:
    """Return whether a device list takes a VXLAN device ("Device List Format")."""
    barred = [spec.removeprefix("except:") for spec in specs if spec.startswith("except:")]
    plain = [spec for spec in specs if not spec.startswith("except:")]
    if any(_is_of(spec, link) for spec in barred):
        return False
    return any(_is_of(spec, link) for spec in plain) or bool(barred and not plain)


def _is_of(spec: str, link: str) -> bool:
    kind, separator, value = spec.partition(":")
    if not separator:
        return fnmatchcase(link, spec)
    if kind == "interface-name":
        if value.startswith("="):
            return link == value[1:]
        return fnmatchcase(link, value.removeprefix("~"))
    return kind in {"type", "driver"} and fnmatchcase("vxlan", value)


CHECK: Final = Check("network-manager", "NetworkManager's files, if it runs", _run)
