"""A step of a build in a network of ours: its namespace is a descriptor of buildah's."""

import re
import shutil
from ipaddress import ip_address

import pytest

from overlay.model.address import FAMILIES
from tests.runtime.recorder import Recorder
from tests.runtime.runtimes import Buildah, Podman
from tests.runtime.site import Site, nothing_is_left, request_for, seen_in

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        shutil.which("buildah") is None, reason="needs the command buildah (Debian: buildah)"
    ),
]


def test_step_of_a_build_reaches_a_pod_of_the_other_node(site: Site) -> None:
    site.install("shim")
    here, there = (Podman(site.machines[n], site.image, site.cgroup(n)) for n in ("n1", "n2"))
    recorder = Recorder(site.machines["n1"])
    recorder.install()
    there.start("server")
    (held,) = site.attachments("n2")
    step = Buildah(here, site.machines["n1"], site.cgroup("n1"))
    for number, target in enumerate(map(ip_address, held["addresses"])):
        source = seen_in(step.run(f"step{number}", "sh", "-c", request_for(target)))
        assert any(source in network for network in site.subnets("n1"))
    calls = [call for call in recorder.calls() if call[0] != "VERSION"]
    assert [call[0] for call in calls] == len(FAMILIES) * ["ADD", "DEL"]
    assert all(re.match(r"/proc/\d+/fd/\d+\Z", call[2]) for call in calls), calls
    nothing_is_left(site, "n1")
    there.stop("server")
    nothing_is_left(site, "n2")
