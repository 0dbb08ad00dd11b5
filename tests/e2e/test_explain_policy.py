"""``overlayctl explain`` judges network policies, on this node and on the other one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import eventually

pytestmark = pytest.mark.e2e

DENY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


@dataclass(frozen=True, slots=True)
class Shop:
    """Two nodes; ``here`` has the pods ``one`` and ``two``, the other one ``far``."""

    here: HubNode
    one: str
    two: str
    far: str

    def explain(self, *words: str) -> dict[str, Any]:
        """Return what ``explain`` says of a way."""
        endpoint = f"--etcd-endpoints={self.here.hub.etcd.endpoint}"
        text = self.here.overlayctl(endpoint, "-o", "json", "explain", *words)
        document: dict[str, Any] = json.loads(text)
        return document

    def broken(self, *words: str) -> tuple[str, str, str] | None:
        """Return where a way breaks, why, and what mends it."""
        step = self.explain(*words)["broken"]
        return None if step is None else (step["place"], step["fault"], step["mend"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    hub = Hub(tmp_path_factory.mktemp("policy"))
    try:
        hub.begin()
        here, there = hub.node(1), hub.node(2)
        for node in (here, there):
            node.start("--healthz-ip=0.0.0.0").wait_ready()
        addresses = [
            node.add_pod(name)[1] for node, name in ((here, "a"), (here, "b"), (there, "c"))
        ]
        yield Shop(here, *addresses)
    finally:
        hub.close()


def test_policy_that_stops_a_packet_is_named(shop: Shop, tmp_path: Path) -> None:
    def is_asked() -> bool:
        return bool((shop.explain(shop.one, shop.far)["far"] or {}).get("asked"))

    eventually(is_asked, timeout_s=30, what="an answer of n2")
    assert shop.broken(shop.one, shop.far) is None
    assert shop.broken(shop.one, shop.two, "--port", "80") is None
    file = tmp_path / "deny.yaml"
    file.write_text(DENY)
    endpoint = f"--etcd-endpoints={shop.here.hub.etcd.endpoint}"
    shop.here.overlayctl(endpoint, "policy", "apply", "-f", str(file))
    why = "network policies do not allow it"
    eventually(lambda: shop.broken(shop.one, shop.two), timeout_s=30, what="the policy here")
    assert shop.broken(shop.one, shop.two, "--port", "80") == (
        "node",
        why,
        f"overlayctl policy test {shop.one} {shop.two} --proto tcp --port 80",
    )
    eventually(lambda: shop.broken(shop.one, shop.far), timeout_s=30, what="the policy of n2")
    assert shop.broken(shop.one, shop.far) == (
        "n2 node",
        why,
        f"ssh n2 overlayctl explain {shop.one} {shop.far}",
    )
    # A node reaches its own pods whatever policies say.
    assert shop.broken("node", shop.two) is None
