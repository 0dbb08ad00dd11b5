"""Policies put in force as an operator does it: ``overlayctl``, etcd, and the agents."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.gateway import Gateway
from overlay.cli.control import AgentUnreachableError, call
from overlay.lab import netns
from overlay.model.netpol import Labels
from tests.netpol.casebook import Case, Moment
from tests.netpol.site import Site
from tests.netpol.statements import NODES

_LIMIT_S: Final = 60.0
_STEP_S: Final = 0.02  # of polling
_MARK: Final = "mark/moment"  # a policy over nobody, in the last write of each moment
_CTL: Final = str(Path(sys.executable).parent / "overlayctl")


def is_for_agents(case: Case) -> bool:
    """Return whether a case needs nothing that only Kubernetes tells of, nor pods that go."""
    text = str([moment.policies for moment in case.moments])
    return "'web" not in text and not any(
        moment.hosts or moment.finished or len(moment.pod_labels) < len(case.moments[0].pod_labels)
        for moment in case.moments
    )


@dataclass(slots=True)
class ThroughAgents:
    """``enforce`` returns when every agent says that it has the last write in force."""

    site: Site
    _policies: set[str] = field(default_factory=set)
    _labels: dict[tuple[str, str], Labels] = field(default_factory=dict)
    _moment: int = 0

    def enforce(self, moment: Moment) -> None:
        """Write what differs from the moment before, and wait for the agents."""
        for name, labels in moment.namespace_labels.items():
            self._label("namespace", name, labels)
        for name, labels in moment.pod_labels.items():
            self._label("pod", name, labels)
        for name in sorted(self._policies - set(moment.policies)):
            self._ctl("policy", "delete", name)
        self._policies = set(moment.policies)
        self._moment += 1
        documents = [*moment.objects(self.site.places), self._mark()]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        self._ctl("policy", "apply", "-f", "-", text=text)
        self._await(self._revision())

    def _label(self, kind: str, name: str, labels: Labels) -> None:
        before = self._labels.get((kind, name), {})
        words = [f"{key}={value}" for key, value in labels.items() if before.get(key) != value]
        words += [f"{key}-" for key in before if key not in labels]
        if words:
            self._ctl(kind, "label", name, *words)
        self._labels[kind, name] = labels

    def _mark(self) -> Mapping[str, Any]:
        namespace, _, name = _MARK.partition("/")
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"podSelector": {"matchLabels": {"moment": str(self._moment)}}},
        }

    def _ctl(self, *words: str, text: str = "") -> None:
        topology = self.site.lab.topology
        command = [_CTL, *words, "--etcd-endpoints", topology.etcd_endpoint]
        run = functools.partial(
            subprocess.run,
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
            env={"PATH": os.environ.get("PATH", "")},
        )
        done: subprocess.CompletedProcess[str] = netns.inside(topology.underlay, run)
        assert done.returncode == 0, (words, done.stdout, done.stderr)

    def _revision(self) -> int:
        """Return the revision of the last write."""
        topology = self.site.lab.topology
        port = int(topology.etcd_endpoint.rpartition(":")[2])
        open_ = functools.partial(Gateway, str(topology.etcd_host), port)
        gateway = netns.inside(topology.underlay, open_)
        try:
            (mark,) = (key for key in gateway.keys("/") if key.endswith(_MARK))
            return gateway.revision(mark)
        finally:
            gateway.close()

    def _await(self, revision: int) -> None:
        deadline = time.monotonic() + _LIMIT_S
        for node in NODES:
            path = self.site.lab.dir.node(node) / "cni.sock"
            while True:
                try:
                    policy = call(path, "status").get("policy") or {}
                except AgentUnreachableError as exc:  # it has only just been started
                    policy = {"unreachable": str(exc)}
                if policy.get("in_force") and policy.get("revision", 0) >= revision:
                    break
                assert time.monotonic() < deadline, (node, revision, policy)
                time.sleep(_STEP_S)
