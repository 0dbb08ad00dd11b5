"""A program with the rights and the view of the agent's container in the DaemonSet.

Capabilities are read from the manifest. The root is read-only and so is
/proc/sys; the host's own /proc/sys/net is mounted as the manifest mounts it.
"""

from pathlib import Path
from typing import Any, Final

import yaml

_MANIFEST: Final = Path(__file__).parents[2] / "manifests/kubernetes/base/daemonset.yaml"
_CAPABILITY: Final = {"NET_ADMIN": 12, "NET_RAW": 13}  # linux/capability.h
_SCRIPT: Final = """\
set -e
root=$1 writable=$2 mounted=$3 rights=$4
shift 4
mount -t tmpfs none "$root"
for each in /*; do
  if [ -L "$each" ]; then
    cp -P "$each" "$root$each"
  elif [ "$each" = /run ]; then
    mkdir "$root/run"
    : >"$root/run/xtables.lock"
  elif [ -d "$each" ]; then
    mkdir -p "$root$each"
    mount --rbind "$each" "$root$each"
    [ "$each" = /proc ] || [ "$each" = /dev ] || mount -o remount,bind,ro "$root$each"
  fi
done
mkdir -p "$root$mounted"
mount --bind /proc/sys/net "$root$mounted"
mount --bind "$writable" "$root$writable"
mount --bind /proc/sys "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$root/run/xtables.lock" "$root/run/xtables.lock"
mount -o remount,bind,ro "$root" 2>/dev/null || mount -o remount,ro "$root"
exec chroot "$root" setpriv --bounding-set="-all,$rights" --inh-caps=-all --no-new-privs "$@"
"""


def container() -> dict[str, Any]:
    """Return the agent's container as the manifest has it."""
    document = yaml.safe_load(_MANIFEST.read_text())
    (found,) = document["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def capabilities() -> list[str]:
    """Return what the container may do."""
    given = container()["securityContext"]["capabilities"]
    assert given["drop"] == ["ALL"]
    return list(given["add"])


def capability_mask() -> int:
    """Return the same as /proc/PID/status has it."""
    return sum(1 << _CAPABILITY[name] for name in capabilities())


def confined(place: Path) -> tuple[str, ...]:
    """Return what a command begins with to be run like the container; it may write to ``place``."""
    root = place.parent / f"{place.name}-root"
    root.mkdir(exist_ok=True)
    mounts = {m["name"]: m["mountPath"] for m in container()["volumeMounts"]}
    rights = ",".join(f"+{name.lower()}" for name in capabilities())
    words = (str(root), str(place), mounts["proc-sys-net"], rights)
    return ("unshare", "--mount", "sh", "-c", _SCRIPT, "confined", *words)
