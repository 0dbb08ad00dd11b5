"""Network policies of a cluster, on the real kernel: by the API's labels, and never too late."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.agents import BIN
from tests.e2e.kube_hub import KubeHub
from tests.e2e.policies import Party
from tests.kernel.netns import eventually, host_unchanged
from tests.kube.objects import Place

pytestmark = pytest.mark.e2e

PODS: Final = Place("pods", "shop")
POLICIES: Final = Place("networkpolicies", "shop")
# Whom the policies let in: what has the label that is asked for.
FRIENDS: Final = {
    "podSelector": {"matchLabels": {"app": "web"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}],
}
_LATE_S: Final = 20.0


class Shop:
    """Two nodes, each with an agent, and pods of a namespace on them."""

    def __init__(self, place: Path) -> None:
        self.hub = KubeHub(place)
        for number in (1, 2):
            self.hub.register(number)
        self.agents = [self.hub.start(number) for number in (1, 2)]
        for agent in self.agents:
            agent.wait_ready()
        self.hub.wait_for_routes(2)
        self.stack = contextlib.ExitStack()
        self._addresses: dict[str, list[dict[str, str]]] = {}

    def tell(self, name: str, node: int, phase: str = "Running", **labels: str) -> None:
        """Write a pod's object, as scheduler and kubelet do."""
        self.hub.put(
            PODS,
            {
                "metadata": {"name": f"pod-{name}", "labels": labels},
                "spec": {"nodeName": f"n{node}", "containers": [{"name": "c"}]},
                "status": {"phase": phase, "podIPs": self._addresses.get(name, [])},
            },
        )

    def start(self, name: str, node: int) -> Party:
        """Attach a pod as a runtime does, and listen in it."""
        pod, address = self.hub.host(node).add_pod(name)
        self._addresses[name] = [{"ip": address}]
        return Party(pod, (address,), name).listen(self.stack)

    def apply(self, name: str, spec: dict[str, Any]) -> None:
        """Write the only policy, and wait until both agents have heard of it."""
        self.hub.put(POLICIES, {"metadata": {"name": name}, "spec": spec})
        for number in (1, 2):
            eventually(
                lambda number=number: (  # type: ignore[misc]  # a default
                    (self.hub.host(number).status()["policy"] or {}).get("policies") == 1
                ),
                timeout_s=_LATE_S,
                what=f"the policy on n{number}",
            )

    def close(self) -> None:
        self.stack.close()
        self.hub.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with host_unchanged():
        made = Shop(tmp_path)
        try:
            yield made
        finally:
            made.close()


def comes_to(source: Party, target: Party, *, is_open: bool) -> None:
    eventually(
        lambda: source.asks(target, 4) is is_open,
        timeout_s=_LATE_S,
        what=f"{source.name} to {target.name} {'open' if is_open else 'closed'}",
    )


def test_labels_phases_and_policies_of_the_api_are_in_force(shop: Shop) -> None:
    shop.tell("client", 2)
    client = shop.start("client", 2)
    shop.tell("client", 2)
    shop.apply("friends", FRIENDS)
    shop.tell("web", 1, app="web")
    web = shop.start("web", 1)
    assert not client.asks(web, 4), "the first packet after ADD"
    shop.tell("client", 2, friend="yes")
    comes_to(client, web, is_open=True)
    # It has finished: whoever has its address next is no friend.
    shop.tell("client", 2, phase="Succeeded", friend="yes")
    comes_to(client, web, is_open=False)
    shop.hub.api.objects.delete(POLICIES, "friends")
    comes_to(client, web, is_open=True)


def test_a_pod_that_the_api_does_not_tell_of_reaches_nobody_until_it_does(shop: Shop) -> None:
    shop.tell("client", 2)
    client = shop.start("client", 2)
    shop.tell("client", 2)
    shop.apply("friends", FRIENDS)
    web = shop.start("web", 1)
    assert not client.asks(web, 4)
    assert not web.asks(client, 4)
    shop.tell("web", 1, app="db")
    comes_to(client, web, is_open=True)


def test_with_the_api_away_policies_stay_and_unknown_pods_do_not_start(shop: Shop) -> None:
    shop.tell("client", 2)
    client = shop.start("client", 2)
    shop.apply("friends", FRIENDS)
    shop.tell("web", 1, app="web")
    web = shop.start("web", 1)
    assert not client.asks(web, 4)
    shop.hub.stop_api()
    here = shop.hub.host(1)
    status, result = here.cni("ADD", "late", shop.hub.netns())
    assert status != 0
    assert "pod shop/pod-late cannot be known" in result["msg"] + result.get("details", "")
    assert not client.asks(web, 4)
    # Killed and started again without the API: the table stays as it was.
    shop.agents[0].process.kill()
    shop.agents[0].process.wait(_LATE_S)
    shop.hub.start(1)
    assert not client.asks(web, 4)
    shop.hub.start_api()
    status, result = here.cni("DEL", "late")
    assert status == 0, result
    shop.tell("client", 2, friend="yes")
    comes_to(client, web, is_open=True)


def test_policies_are_asked_about_and_written_elsewhere(shop: Shop) -> None:
    shop.tell("client", 2)
    shop.start("client", 2)
    shop.tell("client", 2)
    shop.tell("web", 1, app="web")
    shop.start("web", 1)
    shop.tell("web", 1, app="web")
    shop.apply("friends", FRIENDS)

    def said(*words: str) -> str:
        """Return what ``overlayctl`` prints, its errors too."""
        flags = [flag for flag in shop.hub.flags(1) if not flag.startswith("--node-name")]
        command = ["sh", "-c", 'exec "$@" 2>&1', "sh", str(BIN / "overlayctl"), *flags, *words]
        return shop.hub.host(1).netns.run(*command, check=False)

    ask = ("policy", "test", "shop/pod-client", "shop/pod-web", "--port", "80")
    assert "shop/friends" in said(*ask)
    assert "DENIED" in said(*ask)
    assert "friends" in said("policy", "list")
    assert "pod-client" in said("pod", "list")
    assert "<svg" in said("policy", "graph")
    written = said("policy", "delete", "shop/friends")
    assert "kubectl delete" in written
