"""In a container, what cannot be seen is said to be unknown: no guess, and no false alarm."""

import json
import subprocess
import sys
from typing import Any, Final

import pytest

from tests.e2e.agents import BIN
from tests.kernel.netns import Netns

pytestmark = pytest.mark.kernel

# Processes of its own, and no right to enter or to make namespaces.
CONTAINER: Final = (
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all"),
)


def in_container(netns: Netns, *command: str) -> str:
    done = netns.call(
        lambda: subprocess.run(
            [*CONTAINER, *command], capture_output=True, text=True, check=False, timeout=60
        )
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_doctor_says_what_it_cannot_see(netns: Netns) -> None:
    checks = "networkd,network-manager,flannel,kernel"
    words = ["doctor", "--local", "--all", f"--only={checks}", "-o", "json"]
    document: Any = json.loads(in_container(netns, str(BIN / "overlayctl"), *words))
    text = json.dumps(document)
    assert text.count("not to be seen from this container: run doctor on the host itself") == 3
    assert "unshare: Operation not permitted (it takes CAP_SYS_ADMIN" in text
    assert "does not run here" not in text


def test_number_of_the_hosts_is_no_process_of_ours(netns: Netns) -> None:
    code = "from overlay.kernel.notices import probable_maker; print(probable_maker(1))"
    said = in_container(netns, sys.executable, "-c", code)
    assert said == "probably process 1 of the host\n"
