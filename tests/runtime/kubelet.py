"""Pods as a kubelet makes them: a containerd with its CRI service, asked over gRPC."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from tests.kernel.netns import eventually
from tests.runtime.cri import Cri
from tests.runtime.image import IMAGE, PORT
from tests.runtime.machine import BIN_DIR, CONFIG_DIR, DEADLINE_S, Machine
from tests.runtime.runtimes import DAEMON

# What keeps a pod's namespaces is our image itself: it serves its page there.
_CONFIG: Final = """version = 2
root = "{root}"
state = "/run/containerd"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
# Without CAP_SYS_RESOURCE no score may be below the daemon's own.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
"""


class Kubelet:
    """Makes and removes pods on one machine."""

    def __init__(self, machine: Machine, image: Path, cgroup: str) -> None:
        self._machine, self._cgroup = machine, cgroup
        place = machine.place / "cri"
        place.mkdir()
        self._socket = place / "containerd.sock"
        config = place / "config.toml"
        config.write_text(
            _CONFIG.format(
                root=place / "root",
                socket=self._socket,
                image=IMAGE,
                plugins=BIN_DIR,
                networks=CONFIG_DIR,
            )
        )
        self._log = place / "log"
        self._daemon = machine.start(self._log, "containerd", "--config", str(config))
        self.cri = Cri(self._socket)
        eventually(self._answers, timeout_s=DEADLINE_S, what="an answer of containerd's CRI")
        self.load(image, IMAGE)

    def load(self, archive: Path, name: str) -> None:
        """Have an image without asking a registry."""
        self._ctr("images", "import", "--snapshotter", "native", str(archive))
        # The CRI service is told of it a moment later, and would ask a registry until then.
        eventually(partial(self._has_image, name), timeout_s=DEADLINE_S, what=f"the image {name}")

    def wait_for_network(self) -> None:
        """Wait until containerd has read the network, which it does when the folder changes."""
        eventually(self.has_network, timeout_s=DEADLINE_S, what="containerd's network")

    def run(self, name: str, uid: str, *, host_port: int = 0) -> str:
        """Return the id of a pod that runs; its port is mapped where ``host_port`` is told."""
        ports = [{"container_port": PORT, "host_port": host_port}] if host_port else []
        config = {
            "metadata": {"name": name, "uid": uid, "namespace": "shop", "attempt": 0},
            "port_mappings": ports,
            "log_directory": str(self._machine.place / "cri" / "logs"),
            "linux": {"cgroup_parent": f"/{self._cgroup}"},
        }
        return str(self.cri.call("RunPodSandbox", config=config)["pod_sandbox_id"])

    def addresses(self, pod: str) -> list[str]:
        """Return a pod's addresses as the runtime tells a kubelet, the first one first."""
        status = self.cri.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]
        network = status["network"]
        return [network["ip"], *(more["ip"] for more in network.get("additional_ips", []))]

    def namespace(self, pod: str) -> str:
        """Return the path on the machine of a pod's network namespace."""
        answer = self.cri.call("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)
        spec = json.loads(answer["info"][0]["value"])["runtimeSpec"]["linux"]["namespaces"]
        path = next(str(one["path"]) for one in spec if one["type"] == "network")
        return path.removeprefix("/var")  # /var/run is a link, and would lead to another root

    def stop(self, pod: str) -> None:
        self.cri.call("StopPodSandbox", pod_sandbox_id=pod)

    def remove(self, pod: str) -> None:
        self.cri.call("RemovePodSandbox", pod_sandbox_id=pod)

    def pods(self) -> list[str]:
        """Return the ids of the pods that the runtime knows."""
        return [pod["id"] for pod in self.cri.call("ListPodSandbox").get("items", [])]

    def execute(self, pod: str, *words: str) -> str:
        """Return what a program says inside a pod. Raises AssertionError."""
        return self._ctr("task", "exec", "--exec-id", "asked", pod, *words)

    def close(self) -> None:
        """End the daemon."""
        self.cri.close()
        for pid, words in self._machine.processes().items():
            if words.startswith(DAEMON):
                self._machine.run("kill", str(pid))
        self._daemon.wait(DEADLINE_S)

    def _answers(self) -> bool:
        assert self._daemon.poll() is None, self._log.read_text()
        try:
            self.cri.call("ListPodSandbox")
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    def _has_image(self, name: str) -> bool:
        return "image" in self.cri.call("ImageStatus", image={"image": name})

    def has_network(self) -> bool:
        """Return whether containerd calls its network ready, as it would tell a kubelet."""
        status: dict[str, Any] = self.cri.call("Status")["status"]
        # A condition that is met has no reason.
        lacking = [c["type"] for c in status["conditions"] if c.get("reason")]
        return "NetworkReady" not in lacking

    def _ctr(self, *words: str) -> str:
        return self._machine.run(
            "ctr", "--address", str(self._socket), "--namespace", "k8s.io", *words
        )
