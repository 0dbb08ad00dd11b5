"""Two machines of a Kubernetes cluster, with the work of their kubelets, and an API server."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from tests.e2e.kube_hub import PORT, SERVER, KubeHub
from tests.manifests.renderers import KUSTOMIZE, by_name, kustomized
from tests.runtime.build import NAME
from tests.runtime.daemonset import ManifestPod
from tests.runtime.image import write_image
from tests.runtime.kubelet import Kubelet
from tests.runtime.machine import BIN_DIR, CONFIG_DIR, Machine, remove_cgroups
from tests.runtime.podspec import Place, Spec
from tests.runtime.runtimes import REFERENCE_PLUGINS

NODES: Final = (1, 2)
# What a node has beside our plugin (Debian and others: containernetworking-plugins).
REFERENCE: Final = ("loopback", "portmap")
# What stands on a node of ours, and settings that an agent needs.
_FOLDERS: Final = ("/run/overlay", BIN_DIR, CONFIG_DIR)
_FILE: Final = "%P %m %U:%G %s\n"
_SYSCTLS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
)


def _ip(family: str, words: str) -> list[str]:
    return ["ip", family, *words.split()]


class KubeSite:
    """The nodes ``n1`` and ``n2``, on which the pods of our manifests run."""

    def __init__(
        self, place: Path, fabric_image: Path, stack: ExitStack, nodes: Sequence[int] = NODES
    ) -> None:
        self.name = f"t-{uuid4().hex[:8]}"
        self.place = place
        self.objects = kustomized(KUSTOMIZE)
        (job,) = by_name((KUSTOMIZE / "reset-job.yaml").read_text()).values()
        self.job: Spec = job["spec"]["template"]["spec"]
        self.daemon: Spec = self.objects["DaemonSet/overlayd"]["spec"]["template"]["spec"]
        self.hub = KubeHub(place)
        stack.callback(self.hub.close)
        image = place / "image.tar"
        write_image(image)
        self.machines: dict[int, Machine] = {}
        self.kubelets: dict[int, Kubelet] = {}
        for number in nodes:
            self._add(number, stack)
            self.kubelets[number] = Kubelet(self.machines[number], image, self.cgroup(number))
            stack.callback(self.kubelets[number].close)
            self.kubelets[number].load(fabric_image, NAME)

    def _add(self, number: int, stack: ExitStack) -> None:
        node = self.hub.host(number)
        # A node of a real cluster knows its underlay by its default route.
        node.netns.ip("route", "add", "default", "via", SERVER)
        # A kubelet wants it before any network is there; the agent leaves it on.
        node.netns.sysctl("net/ipv4/ip_forward", 1)
        node.state.mkdir()
        stack.callback(remove_cgroups, self.cgroup(number))
        machine = Machine(f"n{number}", node.netns.name, node.state, self.place / f"m{number}")
        stack.callback(machine.close)
        for name in REFERENCE:
            shutil.copy(REFERENCE_PLUGINS / name, machine.plugins)
        self.machines[number] = machine

    def cgroup(self, number: int) -> str:
        return f"{self.name}-n{number}"

    def pod(self, number: int, spec: Spec) -> ManifestPod:
        """Return a pod of a manifest, not started yet."""
        machine, node = self.machines[number], self.hub.host(number)
        where = Place(
            node=f"n{number}",
            volumes=machine.place / f"volumes-{uuid4().hex[:5]}",
            account=self.hub.account,
            api=(SERVER, PORT),
            config_maps=self._config_maps(),
        )
        cgroup = self.cgroup(number)
        return ManifestPod(spec, self.kubelets[number], machine, node.netns, where, cgroup)

    def agent(self, number: int) -> ManifestPod:
        """Return a pod of the DaemonSet, not started yet."""
        return self.pod(number, self.daemon)

    def _config_maps(self) -> Mapping[str, Mapping[str, str]]:
        maps = [item for name, item in self.objects.items() if name.startswith("ConfigMap/")]
        return {item["metadata"]["name"]: item["data"] for item in maps}

    def listing(self, number: int, folder: str) -> list[str]:
        """Return the names in a directory of a node, hidden ones too."""
        return sorted(path.name for path in self.machines[number].path(folder).iterdir())

    def snapshot(self, number: int) -> dict[str, str]:
        """Return all of a node that an agent may change, as text by subject."""
        machine = self.machines[number]
        netns = self.hub.host(number).netns
        found = {folder: machine.run("find", folder, "-printf", _FILE) for folder in _FOLDERS}
        found["links"] = "\n".join(sorted(link["ifname"] for link in netns.ip_json("link")))
        found["addresses"] = machine.run("ip", "-brief", "address")
        found["rules"] = machine.run("nft", "--stateless", "list", "ruleset")
        for family in ("-4", "-6"):
            found[f"routes {family}"] = machine.run(*_ip(family, "route show table all"))
            found[f"policies {family}"] = machine.run(*_ip(family, "rule show"))
        for name in _SYSCTLS:
            found[name] = netns.sysctl(name)
        return found

    def condition(self, number: int) -> dict[str, Any] | None:
        """Return the condition NetworkUnavailable of a Node."""
        conditions = self.hub.found(number)["status"]["conditions"]
        return next((c for c in conditions if c["type"] == "NetworkUnavailable"), None)
