"""An ADD that comes while the agent starts: it waits for the node's subnet, for a bounded time."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from overlay.agent.attachments import Attachments
from overlay.agent.clock import boot_clock
from overlay.agent.cni import CniService
from overlay.agent.layer2 import Layer2
from overlay.agent.status import LAPSED, RUNNING, WAITING_STORE, Status
from tests.unit.worlds import site

VARIABLES: Final = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "early",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
}
# Addresses alone, so that no namespace is needed.
CONFIG: Final = {
    "cniVersion": "1.1.0",
    "name": "fabric",
    "type": "ptp",
    "ipam": {"type": "overlay"},
}


def service_of(status: Status, place: Path, start_s: float) -> CniService:
    attachments = Attachments(place)
    return CniService(status, attachments, Layer2(attachments), start_s)


def asked(service: CniService, **more: str) -> tuple[int, dict[str, Any]]:
    config = json.dumps(CONFIG).encode()
    code, output = service.answer({**VARIABLES, **more}, config, None)
    document: dict[str, Any] = json.loads(output)
    return code, document


def test_add_waits_for_the_subnet(tmp_path: Path) -> None:
    status = Status()
    service = service_of(status, tmp_path, 20)
    with ThreadPoolExecutor(max_workers=1) as pool:
        early = pool.submit(asked, service)
        status.update(phase=WAITING_STORE)
        status.update(site=site())
        assert not early.done(), "the MTU is not known yet"
        status.update(mtu=1450)
        code, result = early.result(20)
    assert (code, len(result["ips"])) == (0, 2)


def test_add_is_told_to_come_again_when_there_is_none(tmp_path: Path) -> None:
    status = Status()
    status.update(phase=WAITING_STORE)
    service = service_of(status, tmp_path, 0.05)
    code, error = asked(service)
    assert (code, error["code"]) == (1, 11)
    assert error["msg"] == f"this node has no subnet: {WAITING_STORE}"


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("STATUS", 50)])
def test_lease_that_has_run_out_gives_no_address(tmp_path: Path, command: str, code: int) -> None:
    """Also where the lessee, which waits for the store, has not said so yet."""
    status = Status()
    ends = boot_clock() - 0.001
    status.update(site=site(), mtu=1450, phase=RUNNING, lease_ends=ends, is_store_connected=True)
    failed, error = asked(service_of(status, tmp_path, 0.05), CNI_COMMAND=command)
    assert (failed, error["code"]) == (1, code)
    assert error["msg"] == f"this node has no subnet: {LAPSED}"


def test_status_does_not_wait(tmp_path: Path) -> None:
    """It is asked often: it would outlast this test's time."""
    service = service_of(Status(), tmp_path, 3600)
    code, error = asked(service, CNI_COMMAND="STATUS")
    assert (code, error["code"]) == (1, 50)


def test_status_tells_what_running_pods_suffer_from(tmp_path: Path) -> None:
    status = Status()
    status.update(phase=RUNNING, site=site(), mtu=1450)
    service = service_of(status, tmp_path, 0)
    assert service.answer({"CNI_COMMAND": "STATUS"}, json.dumps(CONFIG).encode(), None) == (0, b"")
    status.update(kernel_errors=("set route: no buffer space",))
    code, error = asked(service, CNI_COMMAND="STATUS")
    assert (code, error["code"]) == (1, 51)
    assert error["msg"] == "set route: no buffer space"
    status.update(kernel_errors=())
    assert asked(service)[0] == 0, "an ADD"
    status.update(site=site(i=2))
    code, error = asked(service, CNI_COMMAND="STATUS")
    assert (code, error["code"]) == (1, 51)
    assert "is stranded: this node now leases 10.244.2.0/24" in error["msg"]
