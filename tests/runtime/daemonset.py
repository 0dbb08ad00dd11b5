"""A pod of a manifest on one machine, run as a kubelet runs it: steps, probes, an orderly end."""

import base64
import http.client
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import uuid4

import grpc

from tests.kernel.netns import Netns, eventually
from tests.runtime.cgroup import Cgroup
from tests.runtime.kubelet import Kubelet
from tests.runtime.machine import DEADLINE_S, Machine
from tests.runtime.podspec import Place, Spec, container, host_paths, sandbox

_EXITED: Final = 2  # ContainerState of the CRI; RUNNING is 1


class Done(NamedTuple):
    """What a program in a container said at its end."""

    status: int
    output: str


class ManifestPod:
    """A pod with ``spec`` on the host's network; its containers run one try each."""

    def __init__(
        self,
        spec: Spec,
        kubelet: Kubelet,
        machine: Machine,
        netns: Netns,
        place: Place,
        cgroup: str,
    ) -> None:
        self.spec, self._place = spec, place
        self._kubelet, self._machine, self._netns = kubelet, machine, netns
        name = f"overlayd-{uuid4().hex[:5]}"
        self._logs = machine.place / name
        metadata = {"name": name, "uid": str(uuid4()), "namespace": "overlay-system", "attempt": 0}
        self._sandbox = sandbox(spec, metadata, cgroup, self._logs)
        self._id = ""
        self._attempts = 0
        self.main = ""  # the id of its container

    def start(self) -> None:
        """Run the init containers to their end, one after the other, then start the container.

        Raises AssertionError with the words of an init container that fails.
        """
        self.prepare()
        for told in self.spec.get("initContainers", []):
            assert self.run(told).status == 0, self.log(told["name"])
        (told,) = self.spec["containers"]
        self.main = self._start(told)

    def prepare(self) -> None:
        """Make the sandbox, and of the host's paths what the spec says is made."""
        for path, kind in host_paths(self.spec).items():
            self._make(path, kind)
        answer = self._call("RunPodSandbox", config=self._sandbox)
        self._id = str(answer["pod_sandbox_id"])

    def run(self, told: Spec) -> Done:
        """Run a container to its end."""
        started = self._start(told)
        what = f"the end of {told['name']}"
        eventually(partial(self._has_ended, started), timeout_s=DEADLINE_S, what=what)
        return Done(self._status(started).get("exit_code", 0), self.log(told["name"]))

    def restart(self) -> None:
        """Start the container again, as a kubelet does with one that ended."""
        (told,) = self.spec["containers"]
        self.main = self._start(told)

    def stop(self) -> Done:
        """End it as a kubelet does: preStop, SIGTERM, its grace; return what preStop said."""
        (told,) = self.spec["containers"]
        said = self.execute(*told["lifecycle"]["preStop"]["exec"]["command"])
        grace_s = self.spec["terminationGracePeriodSeconds"]
        self._call("StopContainer", container_id=self.main, timeout=grace_s)
        self.remove()
        return said

    def remove(self) -> None:
        """Remove what is left of it."""
        self._kubelet.stop(self._id)
        self._kubelet.remove(self._id)

    def execute(self, *words: str, limit_s: int = DEADLINE_S) -> Done:
        """Run a program in the container, as `kubectl exec` does. Raises grpc.RpcError."""
        answer = self._call("ExecSync", container_id=self.main, cmd=words, timeout=limit_s)
        output = b"".join(base64.b64decode(answer.get(key, "")) for key in ("stdout", "stderr"))
        return Done(answer.get("exit_code", 0), output.decode())

    def probe(self, name: str) -> bool:
        """Return whether ``startup``, ``readiness`` or ``liveness`` succeeds, asked once."""
        (told,) = self.spec["containers"]
        probe = told[f"{name}Probe"]
        limit_s = probe["timeoutSeconds"]
        if "exec" in probe:
            return self._executed(probe["exec"]["command"], limit_s)
        where = probe["httpGet"]
        status, _ = self.get(where["path"], where["host"], where["port"], limit_s)
        return 200 <= status < 400

    def _executed(self, words: Sequence[str], limit_s: int) -> bool:
        try:
            return self.execute(*words, limit_s=limit_s).status == 0
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return False

    def get(
        self, path: str, host: str = "127.0.0.1", port: int = 9470, limit_s: float = 5
    ) -> tuple[int, str]:
        """Return status and body of a page of the agent's; (0, "") where nobody answers in time."""

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection(host, port, timeout=limit_s)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError:
                return 0, ""
            finally:
                connection.close()

        return self._netns.call(ask)

    def wait_ready(self) -> None:
        """Wait for the start-up probe, then for readiness, within what the manifest allows."""
        (told,) = self.spec["containers"]
        startup = told["startupProbe"]
        limit_s = startup["periodSeconds"] * startup["failureThreshold"]
        for name in ("startup", "readiness"):
            eventually(
                lambda name=name: self.is_running() and self.probe(name),  # type: ignore[misc]  # a default
                timeout_s=limit_s,
                what=f"{name} of {self._place.node}, which logged {self.log()}",
            )

    def is_running(self) -> bool:
        """Return whether the container has not ended. Raises AssertionError where it has."""
        assert not self._has_ended(self.main), self.log()
        return True

    def signal(self, name: str) -> None:
        """Send the agent a signal, as somebody on the host may."""
        self._machine.run("kill", f"-{name}", self._pid())

    def process_status(self) -> dict[str, str]:
        """Return what the kernel says of the agent's process: /proc/PID/status."""
        lines = self._machine.run("cat", f"/proc/{self._pid()}/status").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def cgroup(self) -> Cgroup:
        """Return the container's control group."""
        return Cgroup(self._machine.run("cat", f"/proc/{self._pid()}/cgroup"))

    def _pid(self) -> str:
        """Return the agent's process on the machine: of this container the one that runs it."""
        answer = self._call("ContainerStatus", container_id=self.main, verbose=True)
        return str(json.loads(answer["info"][0]["value"])["pid"])

    def log(self, name: str = "overlayd") -> str:
        """Return what a container said so far."""
        texts = [path.read_text() for path in sorted(self._logs.glob(f"{name}.*.log"))]
        return "".join(texts)

    def _start(self, told: Spec) -> str:
        config = container(self.spec, told, self._place, self._attempts)
        self._attempts += 1
        created = self._call(
            "CreateContainer",
            pod_sandbox_id=self._id,
            config=config,
            sandbox_config=self._sandbox,
        )
        self._call("StartContainer", container_id=created["container_id"])
        return str(created["container_id"])

    def _has_ended(self, which: str) -> bool:
        return int(self._status(which).get("state", 0)) == _EXITED

    def _status(self, which: str) -> dict[str, Any]:
        status: dict[str, Any] = self._call("ContainerStatus", container_id=which)["status"]
        return status

    def _call(self, name: str, **fields: Any) -> dict[str, Any]:
        return self._kubelet.cri.call(name, **fields)

    def _make(self, path: str, kind: str) -> None:
        """Do what a hostPath volume's ``type`` says. Raises AssertionError."""
        if kind == "DirectoryOrCreate":
            self._machine.run("mkdir", "-p", path)
        elif kind == "FileOrCreate":
            self._machine.run("sh", "-c", f"test -e {path} || touch {path}")
        else:
            assert kind == "Directory", kind
            self._machine.run("test", "-d", path)
