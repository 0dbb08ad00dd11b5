"""What happens to leases: deleted, expired, claimed by another, unreadable, doubled."""

import json
import signal
import time
from collections.abc import Callable
from typing import Final

from overlay.lab import agents, netns
from overlay.lab.chaos.agent import with_peers
from overlay.lab.chaos.cast import LIVING, SPARE, SUBJECT
from overlay.lab.chaos.connection import cut_off
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted, Skipped
from overlay.lab.chaos.stage import LEASES, Stage
from overlay.lab.errors import LabError
from overlay.lab.topology import NODE_DEVICE

GROUP: Final = "lease"
_TTL_S: Final = 4  # etcd grants no less than 2 s with its own timing
_TTL: Final = (f"--subnet-lease-ttl={_TTL_S}s", "--subnet-lease-renew-margin=2s")
_SAME_SUBNET: Final = "both silently get the same subnet"
_EXITS: Final = "exits with 0, never claims again"
_FEW: Final = 30
_HELD_S: Final = 1.5


def faults() -> list[Fault]:
    """Return the faults of leases, those that change most last."""
    return [
        Fault("own lease deleted", GROUP, _deleted, _EXITS, rounds=5),
        Fault("own lease expired", GROUP, _expired, _EXITS, rounds=3),
        Fault(
            "malformed keys",
            GROUP,
            _malformed,
            "removes every peer",
            rounds=3,
            is_lossless=True,
        ),
        Fault(
            "two nodes with one public IP",
            GROUP,
            _same_address,
            _SAME_SUBNET,
            since=FROM_RETURN,
            is_lossless=True,
            target_s=2.0,
        ),
        Fault(
            "two nodes with one identity",
            GROUP,
            _same_identity,
            _SAME_SUBNET,
            since=FROM_RETURN,
            is_lossless=True,
            target_s=5.0,
        ),
        Fault(
            "a node dead, lease released by hand",
            GROUP,
            _dead,
            is_lossless=True,
        ),
        Fault(
            "hung past its TTL, nobody took the subnet",
            GROUP,
            _hung_past_ttl,
            _EXITS,
            since=FROM_RETURN,
        ),
        Fault(
            "cut off, expired, claimed by another, compacted",
            GROUP,
            _claimed_by_another,
            "double owners: both keep it, the key is taken back",
            since=FROM_RETURN,
            target_s=2.0,
        ),
        Fault(
            "30 of 33 peers deleted at once, let go by hand",
            GROUP,
            _let_go,
            rounds=3,
            is_lossless=True,
        ),
        Fault(
            "30 of 33 peers deleted at once, held back",
            GROUP,
            _mass_deletion,
            is_lossless=True,
            target_s=2.0,
        ),
    ]


def _deleted(stage: Stage) -> Planted:
    return _lost(stage, lambda key: stage.delete([key]))


def _expired(stage: Stage) -> Planted:
    return _lost(stage, lambda key: stage.gateway.revoke(stage.gateway.under(LEASES)[key].lease_id))


def _lost(stage: Stage, lose: Callable[[str], None]) -> Planted:
    key, before = stage.subnet_key(SUBJECT), stage.gateway.under(LEASES)
    at = time.monotonic()
    lose(key)

    def right() -> bool:
        now = stage.gateway.under(LEASES)
        is_claimed = key in now and now[key] != before[key]
        return is_claimed and stage.is_in_step(LIVING, {k: v.value for k, v in now.items()})

    return Planted(right, at)


def _malformed(stage: Stage) -> Planted:
    key, good = stage.free_keys(2)
    bad = {key: b'{"PublicIP":', "no-subnet": b"{}", "300.0.0.0-27": b"{}"}
    at = time.monotonic()
    stage.put(bad)
    stage.put(stage.fakes([good]))
    leases = {key: value for key, value in stage.leases().items() if key not in bad}
    return Planted(
        right=lambda: stage.is_in_step(LIVING, leases),
        at=at,
        undo=lambda: stage.delete([*bad, good]),
    )


def _same_address(stage: Stage) -> Planted:
    stage.terminate(SPARE)
    told, leases = stage.log_size(SPARE), stage.leases()
    at = stage.start(SPARE, f"--public-ip={stage.public(SUBJECT)}")

    def right() -> bool:
        said = [line for line in stage.logged(SPARE, told).splitlines() if "address" in line]
        is_refused = any(SUBJECT in line and SPARE in line for line in said)
        return is_refused and not stage.is_running(SPARE) and stage.leases() == leases

    return Planted(right, at, undo=lambda: stage.restart(SPARE))


def _same_identity(stage: Stage) -> Planted:
    stage.terminate(SPARE)
    stage.delete([stage.subnet_key(SPARE)])  # a clone has no lease of its own
    told, key = stage.log_size(SPARE), stage.subnet_key(SUBJECT)
    leases = stage.leases()
    at = stage.start(SPARE, f"--node-name={SUBJECT}")

    def right() -> bool:
        said = stage.logged(SPARE, told).splitlines()
        is_refused = any(stage.public(SUBJECT) in line and SUBJECT in line for line in said)
        return is_refused and not stage.is_running(SPARE) and stage.leases()[key] == leases[key]

    return Planted(right, at, undo=lambda: stage.restart(SPARE))


def _dead(stage: Stage) -> Planted:
    key = stage.subnet_key(SPARE)
    stage.kill(SPARE)
    netns.ip_batch(stage.namespace(SPARE), [f"link set {NODE_DEVICE} down"])
    if key not in stage.leases():
        msg = f"the lease {key} went with its node"
        raise LabError(msg)
    leases = {k: v for k, v in stage.leases().items() if k != key}
    at = time.monotonic()
    stage.run(
        "underlay",
        *agents.program("overlayctl", "overlay.cli.main"),
        f"--etcd-endpoints={','.join(stage.lab.topology.etcd_endpoints)}",
        *("leases", "release", key.replace("-", "/")),
    )

    def undo() -> None:
        gateway = stage.lab.topology.nodes[-1].gateways
        netns.ip_batch(
            stage.namespace(SPARE),
            [
                f"link set {NODE_DEVICE} up",
                *(f"route replace default via {each}" for each in gateway.values()),
            ],
        )
        stage.start(SPARE)

    return Planted(lambda: stage.is_in_step(LIVING, leases), at, undo)


def _hung_past_ttl(stage: Stage) -> Planted:
    key = stage.subnet_key(SUBJECT)
    stage.restart(SUBJECT, *_TTL)
    stage.signal(SUBJECT, signal.SIGSTOP)
    try:
        stage.await_that(lambda: key not in stage.leases(), f"the lease {key} ends")
    finally:
        at, mark = time.monotonic(), stage.stream.mark()
        stage.signal(SUBJECT, signal.SIGCONT)

    def right() -> bool:
        leases = stage.leases()
        return key in leases and stage.is_in_step(LIVING, leases)

    return Planted(right, at, undo=lambda: stage.restart(SUBJECT), lost_since=mark)


def _claimed_by_another(stage: Stage) -> Planted:
    """The history that gives one subnet two owners wherever a renewal is a blind write."""
    key = stage.subnet_key(SUBJECT)
    file = stage.lab.dir.subnet_file(SUBJECT)
    before, others = file.read_bytes(), stage.fakes([key])[key]
    stage.restart(SUBJECT, *_TTL)
    told = stage.log_size(SUBJECT)
    with cut_off(stage):
        stage.await_that(lambda: key not in stage.leases(), f"the lease {key} ends")
        stage.put({key: others})
        stage.gateway.compact()
        at, mark = time.monotonic(), stage.stream.mark()

    def right() -> bool:
        leases = stage.leases()
        if leases.get(key) != others:
            msg = f"the lease {key} was taken back from its new owner"
            raise LabError(msg)
        own = stage.subnet_key(SUBJECT)
        is_elsewhere = own != key and _owner(leases.get(own, b"")) == SUBJECT
        is_told = key.replace("-", "/") in stage.logged(SUBJECT, told)
        return is_elsewhere and is_told and stage.is_in_step(LIVING, leases)

    def undo() -> None:
        stage.terminate(SUBJECT)
        stage.delete([key, *(k for k, v in stage.leases().items() if _owner(v) == SUBJECT)])
        file.write_bytes(before)
        stage.restart(SUBJECT)

    note = "its pods keep addresses of the old subnet and are named in the log"
    return Planted(right, at, undo, mark, note)


def _owner(value: bytes) -> str:
    try:
        name: str = json.loads(value)["Overlay"]["NodeName"]
    except (ValueError, LookupError, TypeError):
        return ""
    return name


def _guarded(stage: Stage, delay: str) -> dict[str, bytes]:
    """Restart the subject so that it holds many deletions back; return its fake peers."""
    if not stage.can_prune:
        msg = "this agent has no --max-prune"
        raise Skipped(msg)
    stage.restart(SUBJECT, "--max-prune=50%", f"--prune-delay={delay}")
    return with_peers(stage, _FEW)


def _let_go(stage: Stage) -> Planted:
    made = _guarded(stage, "1h")
    told = stage.log_size(SUBJECT)
    stage.delete(list(made))
    stage.await_that(lambda: "vanished" in stage.logged(SUBJECT, told), "they are held back")
    at = time.monotonic()
    stage.run(
        SUBJECT,
        *agents.program("overlayctl", "overlay.cli.main"),
        *("--socket", str(stage.lab.dir.node(SUBJECT) / "cni.sock")),
        *("peers", "prune"),
    )
    leases = stage.leases()
    return Planted(
        lambda: stage.is_in_step([SUBJECT], leases), at, undo=lambda: stage.restart(SUBJECT)
    )


def _mass_deletion(stage: Stage) -> Planted:
    made = _guarded(stage, f"{2 * _HELD_S:g}s")
    leases = stage.leases()
    at = time.monotonic()
    stage.delete(list(made))

    def right() -> bool:
        if time.monotonic() < at + _HELD_S:
            return False
        if not stage.is_in_step([SUBJECT], leases):
            msg = f"{_FEW} peers were removed at once"
            raise LabError(msg)
        return True

    def undo() -> None:
        now = stage.leases()
        stage.await_that(lambda: stage.is_in_step([SUBJECT], now), "what was held is let go")
        stage.restart(SUBJECT)

    note = f"right is that its entries are still there after {_HELD_S:g} s"
    return Planted(right, at, undo, note=note)
