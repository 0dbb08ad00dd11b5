"""The node's socket: one request in, one answer out; root alone may ask.

``{"overlay": 1, "call": "status"}`` is answered by
``{"overlay": 1, "ok": true, "result": {...}}`` or
``{"overlay": 1, "ok": false, "error": {"code": ..., "message": ...}}``.
A call may have ``"args": {...}``. docs/cli.md has the results. What begins
otherwise is the CNI plugin's: docs/cni-protocol.md.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from overlay import __version__
from overlay.agent.cni_request import IO_FAILURE, LATEST, TRY_LATER, CniError
from overlay.agent.cni_result import format_error
from overlay.agent.cni_wire import (
    MAGIC,
    DescriptorLostError,
    Opening,
    WireError,
    format_response,
    opened,
    read_request,
)
from overlay.agent.listen import Crew, stop_listening
from overlay.agent.peer_leases import peer_leases
from overlay.agent.reconciler import Reconciler
from overlay.agent.status import Snapshot, Status, stranded_text
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.unix import is_answered
from overlay.model.attachment import Attachment
from overlay.model.document import parse_json
from overlay.model.errors import OverlayError, UsageError
from overlay.model.lease import Lease
from overlay.model.node import NodeIdentity
from overlay.plan.diff import diff

log = logging.getLogger(__name__)

PROTOCOL: Final = 1
_LONGEST: Final = 1 << 20  # bytes of one request
_TIMEOUT_S: Final = 10.0
_BACKLOG: Final = 4096  # a runtime may start as many pods at once
_UCRED: Final = struct.Struct("=iII")

Arguments = Mapping[str, Any]
Call = Callable[[Arguments], Any]
Cni = Callable[[Mapping[str, str], bytes, PodNamespace | None], tuple[int, bytes]]


class ControlServer:
    """Answers any number of clients at once. Raises OSError when it cannot listen."""

    def __init__(self, path: Path, calls: Mapping[str, Call], cni: Cni | None = None) -> None:
        self._path = path
        self._calls = calls
        self._cni = cni
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_second(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(mask)
        self._inode = path.stat().st_ino
        self._socket.listen(_BACKLOG)
        Crew(self._socket, self._serve, "control")

    def close(self) -> None:
        """Stop listening and remove the socket, if it is still ours."""
        stop_listening(self._socket)
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(_TIMEOUT_S)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            _pid, uid, _gid = _UCRED.unpack(credentials)
            try:
                with opened(client) as opening:
                    client.sendall(self._respond(client, opening, is_root=uid == 0))
            except TimeoutError:
                text = f"no request came within {_TIMEOUT_S:g} s"
                client.sendall(format_response(1, _cni_refusal(IO_FAILURE, text)))

    def _respond(self, client: socket.socket, opening: Opening, *, is_root: bool) -> bytes:
        if opening.data[:1] == MAGIC[:1] and self._cni is not None:
            if not is_root:
                return format_response(1, _cni_refusal(IO_FAILURE, "only root may attach pods"))
            try:
                return format_response(*self._cni(*read_request(client, opening)))
            except WireError as exc:
                log.warning("CNI: %s", exc)
                return format_response(1, _cni_refusal(IO_FAILURE, str(exc)))
            except DescriptorLostError as exc:
                log.warning("CNI: %s", exc)
                return format_response(1, _cni_refusal(TRY_LATER, str(exc)))
        answer = self._answer(client, opening.data) if is_root else _error("forbidden", "root only")
        return json.dumps(answer).encode() + b"\n"

    def _answer(self, client: socket.socket, begun: bytes) -> dict[str, Any]:
        try:
            request = parse_json(_read_line(client, begun))
            version, name = request["overlay"], request["call"]
        except (ValueError, KeyError, TypeError):
            return _error("bad-request", 'write one line like {"overlay": 1, "call": "status"}')
        if version != PROTOCOL:
            return _error("bad-version", f"this agent speaks version {PROTOCOL}")
        call = self._calls.get(name) if isinstance(name, str) else None
        if call is None:
            return _error("bad-call", f"there are {', '.join(sorted(self._calls))}")
        try:
            given = request.get("args")
            result = call(given if isinstance(given, dict) else {})
        except OverlayError as exc:
            return _error("failed", str(exc))
        except Exception as exc:
            log.exception("the call %s", name)
            return _error("fault", f"{type(exc).__name__}: {exc}; the agent's log has more")
        return {"overlay": PROTOCOL, "ok": True, "result": result}


def refuse_second(path: Path) -> None:
    """Raise FileExistsError when an agent answers on ``path`` already."""
    if is_answered(path):
        msg = f"another overlayd of this node answers on {path}; stop it first"
        raise FileExistsError(0, msg)


def calls(
    node: NodeIdentity,
    status: Status,
    reconciler: Reconciler,
    started_at: float,
    stranded: Callable[[], Sequence[Attachment]],
    renew_margin_s: int,
) -> dict[str, Call]:
    """Return what the agent answers, by name. ``started_at`` is of the monotonic clock."""

    def show_status(_given: Arguments) -> dict[str, Any]:
        uptime_s = round(time.monotonic() - started_at, 3)
        return {**_status(status.get(), stranded()), "node": {"id": node.id, "name": node.name},
                "renew_margin_s": renew_margin_s,
                "version": __version__, "uptime_s": uptime_s}  # fmt: skip

    def show_peers(_given: Arguments) -> dict[str, Any]:
        snapshot = status.get()
        held = snapshot.held.leases if snapshot.held else {}
        peers = [
            {**_peer(lease), "held": key in held}
            for key, lease in sorted(peer_leases(snapshot).items())
        ]
        return {"peers": peers, "held": _held(snapshot)}

    def answer(given: Arguments) -> dict[str, Any]:
        answers = {"prune": True, "keep": False}
        word = given.get("answer")
        if not isinstance(word, str) or word not in answers:
            msg = f"answer {word!r}: write one of {', '.join(answers)}"
            raise UsageError(msg)
        count = reconciler.hold.answer(let_go=answers[word])
        reconciler.bell.set()
        return {"answer": word, "peers": count}

    def show_diff(_given: Arguments) -> dict[str, Any]:
        with contextlib.closing(NetlinkKernel()) as kernel:
            ops = [str(op) for op in diff(reconciler.desired(), kernel.dump())]
        return {"ops": [*ops, *reconciler.layer2_differences()]}

    return {"status": show_status, "peers": show_peers, "held": answer, "diff": show_diff}


def _status(snapshot: Snapshot, stranded: Sequence[Attachment]) -> dict[str, Any]:
    site, view = snapshot.site, snapshot.view
    underlay = site.underlay if site else None
    skipped = view.skipped if view else ()
    problems = [{"about": p.about, "text": p.text} for p in snapshot.problems.values()]
    problems += [{"about": s.key, "text": s.reason} for s in skipped]
    policy = snapshot.policy
    for key in policy.skipped if policy is not None else ():
        problems.append({"about": "policies", "text": f"{key.key}: {key.reason}"})
    if snapshot.policy_trouble is not None:
        problems.append({"about": "policies", "text": snapshot.policy_trouble})
    extra = (snapshot.config_error, snapshot.lessee_error, *snapshot.warnings)
    problems += [{"about": "this node", "text": text} for text in extra if text]
    problems += [{"about": str(a.key), "text": stranded_text(a, snapshot)} for a in stranded]
    fights = snapshot.contested(time.monotonic())
    problems += [{"about": "this node", "text": str(fight)} for fight in fights]
    held = _held(snapshot)
    if held is not None:
        problems.append({"about": "peers", "text": _held_text(held)})
    return {
        "phase": snapshot.phase,
        "ready": snapshot.is_ready,
        "reasons": list(snapshot.reasons),
        "subnet": str(site.own.subnet) if site else None,
        "vteps": _vteps(site.own) if site else [],
        "mtu": snapshot.mtu or None,
        "backend": site.config.backend.type if site else None,
        "egress": site.config.egress.mode.value if site else None,
        "underlay": {
            "device": underlay.device,
            "mtu": underlay.mtu,
            "addresses": [str(ip) for ip in underlay.public.values()],
        }
        if underlay
        else None,
        "store": {
            "connected": snapshot.is_store_connected,
            "error": snapshot.store_error,
            "revision": view.revision if view else 0,
        },
        "peers": snapshot.peers,
        "held": held,
        "policy": {
            "policies": policy.policies,
            "isolated": policy.isolated,
            "in_force": snapshot.policy_error is None,
            "revision": policy.revision,
        }
        if policy is not None
        else None,
        "stranded": [a.to_json() for a in stranded],
        "problems": problems,
    }


def _held(snapshot: Snapshot) -> dict[str, Any] | None:
    if snapshot.held is None:
        return None
    left_s = snapshot.held.seconds_left(time.monotonic())
    rounded = None if left_s is None else round(left_s, 1)
    return {"peers": len(snapshot.held.leases), "seconds_left": rounded}


def _held_text(held: Mapping[str, Any]) -> str:
    count, left_s = held["peers"], held["seconds_left"]
    until = "until they come back" if left_s is None else f"for {left_s:.0f} s"
    return (
        f"{count} vanished from the store together and are kept {until}; "
        "`overlayctl peers prune` lets them go, `overlayctl peers keep` keeps them"
    )


def _peer(lease: Lease) -> dict[str, Any]:
    attributes, owner = lease.attributes, lease.attributes.owner
    macs = (data.get("VtepMAC") for data in attributes.backend_data.values())
    return {
        "subnet": str(lease.subnet),
        "node": lease.node,
        "public": [str(ip) for ip in attributes.public.values()],
        "backend": attributes.backend_type,
        "mac": next((mac for mac in macs if isinstance(mac, str)), None),
        "vteps": _vteps(lease),
        "flannel": owner is None,
        "since": owner.claimed_at if owner else None,
    }


def _vteps(lease: Lease) -> list[dict[str, Any]]:
    return [
        {"family": family.value, "mac": data.get("VtepMAC"), "vni": data.get("VNI")}
        for family, data in lease.attributes.backend_data.items()
    ]


def _read_line(client: socket.socket, data: bytes) -> bytes:
    deadline = time.monotonic() + _TIMEOUT_S
    while b"\n" not in data:
        part = client.recv(65536)
        data += part
        if not part or len(data) > _LONGEST or time.monotonic() > deadline:
            break
    return data[:_LONGEST]


def _cni_refusal(code: int, text: str) -> bytes:
    return format_error(CniError(code, text), LATEST)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"overlay": PROTOCOL, "ok": False, "error": {"code": code, "message": message}}
