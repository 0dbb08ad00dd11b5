"""Whether systemd-networkd leaves our devices, routes and rules alone.

By default it removes routes and rules that others made whenever it starts or
a link comes up (networkd.conf(5), ManageForeignRoutes=), and it takes charge
of any link that a ``.network`` file matches (systemd.network(5)).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.keyfile import boolean, drop_ins, settings
from overlay.cli.doctor.link_files import file_for
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, warning
from overlay.kernel.host.daemons import running

_NAME: Final = "systemd-networkd"
_FOLDERS: Final = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")
_FOREIGN: Final = ("ManageForeignRoutes", "ManageForeignRoutingPolicyRules")
_REMEDY_FOREIGN: Final = (
    "mkdir -p /etc/systemd/networkd.conf.d && printf '[Network]\\nManageForeignRoutes=no\\n"
    "ManageForeignRoutingPolicyRules=no\\n' > /etc/systemd/networkd.conf.d/10-overlay.conf && "
    "systemctl restart systemd-networkd"
)
_REMEDY_LINKS: Final = (
    "printf '[Match]\\nName=overlay.* overlay-v6.* ovl4.* ovl6.* opod*\\n"
    "[Link]\\nUnmanaged=yes\\n' "
    "> /etc/systemd/network/00-overlay.network && networkctl reload"
)


def _run(facts: Facts) -> Iterator[Verdict]:
    if not running({_NAME}):
        yield Fine("does not run here")
        return
    root = facts.places.root
    foreign = {
        name: value for name, value in _foreign(root).items() if boolean(value, default=True)
    }
    if foreign:
        reason = f"{', '.join(f'{n}={v}' for n, v in foreign.items())}: networkd removes our routes"
        yield warning(f"{reason} and rules when it restarts", _REMEDY_FOREIGN)
    found = [d.name for d in facts.fabric().devices] or ["overlay.1"]
    for name in found:
        owner = _manager(root, name)
        if owner is not None:
            yield warning(f"{owner} matches {name}: networkd takes it over", _REMEDY_LINKS)
    yield Fine(f"runs; {', '.join(found)} looked up in its files")


def _foreign(root: Path) -> dict[str, str]:
    files = [root / folder / "networkd.conf" for folder in _FOLDERS]
    main = [next((file for file in files if file.exists()), None)]
    extra = drop_ins(root, [f"{folder}/networkd.conf.d" for folder in _FOLDERS], "*.conf")
    found = dict.fromkeys(_FOREIGN, "yes")
    for setting in settings([*(file for file in main if file is not None), *extra]):
        if setting.section == "Network" and setting.key in found:
            found[setting.key] = setting.value
    return found


def _manager(root: Path, link: str) -> Path | None:
    """Return the ``.network`` file that takes ``link``, unless it leaves it unmanaged."""
    found = file_for(root, link, ".network")
    if found is None:
        return None
    file, said = found
    unmanaged = [s.value for s in said if (s.section, s.key) == ("Link", "Unmanaged")]
    return None if unmanaged and boolean(unmanaged[-1], default=False) else file


CHECK: Final = Check("networkd", "systemd-networkd's files, if it runs", _run)
