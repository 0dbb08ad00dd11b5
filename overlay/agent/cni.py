"""ADD, DEL, CHECK, GC and STATUS, carried out: addresses from the lease, a pair in the pod.

An ADD that fails is taken back before it is answered. One that is cut off
leaves a record and perhaps a pair; DEL, GC or the next start removes both. Each
runs in the thread of its client.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from overlay.agent.attachments import Attachments
from overlay.agent.clock import boot_clock
from overlay.agent.cni_config import demand, wanted_labels, wanted_mode, wanted_mtu
from overlay.agent.cni_refusal import refusal_of
from overlay.agent.cni_request import (
    BAD_CONFIG,
    BAD_VARIABLE,
    CHECK_FAILED,
    FAULT,
    LIMITED,
    TRY_LATER,
    UNAVAILABLE,
    UNKNOWN_CONTAINER,
    CniError,
    CniRequest,
    expected_by,
    parse_request,
    previous_result,
    valid_attachments,
    version_for_errors,
    wanted_mac,
)
from overlay.agent.cni_result import format_error, format_ipam_result, format_result
from overlay.agent.cni_teardown import Teardown, addresses_in_use
from overlay.agent.cni_witness import attached
from overlay.agent.host_local import HostLocal
from overlay.agent.ipam_call import ipam_calls
from overlay.agent.layer2 import Layer2
from overlay.agent.policy_gate import PolicyGate
from overlay.agent.status import LAPSED, Status, stranded_text
from overlay.ipam.pool import (
    AddressTakenError,
    PoolExhaustedError,
)
from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.netns import inode_at, namespace_of, own_namespace
from overlay.kernel.pod_faults import faults
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.rtnl_pool import RtnlPool
from overlay.model.address import Family, IPAddress, family_of
from overlay.model.attachment import BRIDGE, PTP, Attachment
from overlay.model.event import Kind
from overlay.model.subnet import Subnet

log = logging.getLogger(__name__)

Answer = tuple[int, bytes]  # exit status and standard output of the plugin


class CniService:
    """Answers the plugin. ``attachments`` is shared with whoever lists them.

    An ADD waits ``start_s`` seconds for the node's subnet: an agent that was
    started again has none yet, and not every runtime asks twice. ADD, DEL and
    whatever else makes or removes an attachment take turns for each container: a
    DEL that comes in the middle of an ADD waits for its end.
    """

    def __init__(
        self,
        status: Status,
        attachments: Attachments,
        layer2: Layer2,
        start_s: float = 5.0,
        gate: PolicyGate | None = None,
        clock: Callable[[], float] = boot_clock,
        host_local: HostLocal | None = None,
    ) -> None:
        self._status, self._start_s, self._clock = status, start_s, clock
        self._gate = gate
        self._home = own_namespace()
        self._attachments = attachments
        self._layer2 = layer2
        self._sockets = RtnlPool()
        self._note = status.events.note_later
        self._teardown = Teardown(attachments, layer2, self._sockets, self._note, gate, host_local)
        self._commands: Mapping[str, Callable[[CniRequest, PodNamespace | None], bytes]] = {
            "ADD": self._add,
            "DEL": self._delete,
            "CHECK": self._check,
            "GC": self._collect,
            "STATUS": self._tell_status,
        }
        self.recover = self._teardown.recover

    def answer(
        self, variables: Mapping[str, str], text: bytes, netns: PodNamespace | None
    ) -> Answer:
        """Carry out one request; ``netns`` is the pod's namespace, if any."""
        try:
            request = parse_request(variables, text)
            return 0, self._commands[request.command](request, netns)
        except Exception as exc:  # noqa: BLE001 - whoever waits for an answer gets one
            error = refusal_of(exc)
        command = variables.get("CNI_COMMAND", "?")
        if error.code == FAULT:
            log.error("CNI %s: %s", command, error, exc_info=error.__cause__)
        else:
            log.warning("CNI %s: %s", command, error)
        return 1, format_error(error, version_for_errors(text))

    def stranded(self) -> Sequence[Attachment]:
        """Return the pods that have an address which this node's subnet has not."""
        site = self._status.get().site
        return self._attachments.outside(site.own.subnet) if site is not None else ()

    def calls(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Return what ``overlayctl ipam`` asks over the node's socket."""
        return ipam_calls(self._status, self._attachments, self._teardown)

    def _add(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        subnet, mtu = self._ready(wait_s=self._start_s)
        previous_result(request.config)  # before anything is made
        with self._teardown.turns.of(request.key.container):
            if request.is_ipam:
                return self._give(request, netns, subnet, mtu)
            return self._attach(request, self._pod(request, netns), subnet, mtu)

    def _pod(self, request: CniRequest, netns: PodNamespace | None) -> PodNamespace:
        """Return the pod's namespace. Raises CniError for any other."""
        if netns is None:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} could not be opened")
        try:
            if namespace_of(netns.descriptor) == self._home:
                raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} is the host's own")
        except KernelError as exc:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} is {exc}") from exc
        return netns

    def _give(
        self, request: CniRequest, netns: PodNamespace | None, subnet: Subnet, mtu: int
    ) -> bytes:
        """Return addresses alone, for another plugin."""
        inode = _seen(request.netns, netns)
        attachment = self._allocate(request, subnet, mtu, link="", inode=inode)
        try:
            result = format_ipam_result(request, attachment, subnet)
            self._isolate(attachment)
            attachment = self._attachments.complete(attachment)
            self._note(Kind.POD_ATTACHED, lambda: attached(attachment))
        except BaseException:
            self._teardown.undo(attachment, has_link=False)
            raise
        return result

    def _attach(self, request: CniRequest, netns: PodNamespace, subnet: Subnet, mtu: int) -> bytes:
        mode, link = wanted_mode(request), pods.link_name(request.key)
        attachment = self._allocate(request, subnet, mtu, link=link, mode=mode)
        try:
            result = format_result(request, attachment, subnet)  # may be too long: before wiring
            self._isolate(attachment)
            defaults = self._wire(attachment, netns, subnet, mtu)
            attachment = self._attachments.complete(attachment)
            if defaults != {family_of(address) for address in attachment.addresses}:
                result = format_result(request, attachment, subnet, defaults)
            self._note(Kind.POD_ATTACHED, lambda: attached(attachment))
        except BaseException as exc:
            # A link that was there before is somebody's.
            has_link = not isinstance(exc, pods.InterfaceExistsError)
            self._teardown.undo(attachment, has_link=has_link)
            raise
        return result

    def _wire(
        self, attachment: Attachment, netns: PodNamespace, subnet: Subnet, mtu: int
    ) -> frozenset[Family]:
        """Make the pair; return the families whose default route it has. Raises KernelError."""
        is_bridged = attachment.mode == BRIDGE
        with self._sockets.lent() as rtnl:
            bridge = self._layer2.prepare(rtnl, subnet, mtu) if is_bridged else None
            own, *beside = (
                pods.pod_link(each, subnet) for each in (attachment, *self._beside(attachment))
            )
            defaults = pods.attach(rtnl, netns, own, beside, bridge)
            if not is_bridged:
                self._layer2.follow(rtnl)
        return defaults

    def _isolate(self, attachment: Attachment) -> None:
        """Wait until policies are in force for what does not send yet. Raises KernelError."""
        if self._gate is not None:
            self._gate.admit(attachment)

    def _beside(self, attachment: Attachment) -> list[Attachment]:
        """Return the other interfaces that the same pod has from us, on whatever network."""
        return [
            other
            for other in self._attachments.list()
            if other.key.container == attachment.key.container
            and other.sandbox == attachment.sandbox
            and other.key != attachment.key
            and other.link
        ]

    def _allocate(
        self,
        request: CniRequest,
        subnet: Subnet,
        mtu: int,
        link: str,
        mode: str = PTP,
        inode: int = 0,
    ) -> Attachment:
        mac, labels = wanted_mac(request), wanted_labels(request)

        def make(addresses: tuple[IPAddress, ...]) -> Attachment:
            return Attachment(
                key=request.key,
                sandbox=request.netns,
                addresses=addresses,
                link=link,
                mac=mac or (pods.link_mac(link, "pod") if link else None),
                mtu=wanted_mtu(request, mtu),
                arguments=dict(request.arguments),
                mode=mode,
                labels=labels,
                netns_inode=inode,
            )

        wanted = demand(request, subnet)
        try:
            return self._attachments.add(subnet, wanted, request.key, make)
        except (PoolExhaustedError, AddressTakenError):
            # Links without a record may have gone meanwhile: nobody is told of that.
            self._attachments.settle(addresses_in_use)
            return self._attachments.add(subnet, wanted, request.key, make)

    def _delete(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        del netns  # the host's end is found without it
        with self._teardown.turns.of(request.key.container):
            held = self._attachments.get(request.key)
            # The configuration may have become another one since the ADD: the record knows.
            has_link = not request.is_ipam or bool(held and held.link)
            link = pods.link_name(request.key) if has_link else ""
            self._teardown.drop(request.key, link, "the runtime says so")
        return b""

    def _check(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        if not previous_result(request.config):
            raise CniError(BAD_CONFIG, '"prevResult" is missing', "CHECK judges by it")
        attachment = self._attachments.get(request.key)
        if attachment is None:
            raise CniError(UNKNOWN_CONTAINER, f"{request.key} is not attached")
        if request.is_ipam:
            return b""
        expected = expected_by(request, is_bridged=wanted_mode(request) == BRIDGE)
        if netns is None:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} could not be opened")
        with self._sockets.lent() as rtnl:
            found = faults(rtnl, netns, expected)
        if found:
            raise CniError(CHECK_FAILED, "; ".join(found))
        return b""

    def _collect(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        del netns
        kept = valid_attachments(request.config)
        if kept is not None:
            self._teardown.collect(request.key.network, kept)
        return b""

    def _tell_status(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        del request, netns
        subnet, _ = self._ready(UNAVAILABLE)
        for network in subnet.networks():
            used, count = self._attachments.usage(network)
            if used >= count:
                raise CniError(UNAVAILABLE, str(PoolExhaustedError(network, count)))
        self._expect_health()
        return b""

    def _expect_health(self) -> None:
        """Raise CniError for what pods that run suffer from."""
        snapshot = self._status.get()
        troubles = list(snapshot.kernel_errors)
        if snapshot.policy_error is not None:
            troubles.append(f"network policies: {snapshot.policy_error}")
        stranded = self.stranded()
        if stranded:
            more = f", and {len(stranded) - 1} more" if len(stranded) > 1 else ""
            troubles.append(stranded_text(stranded[0], snapshot) + more)
        if troubles:
            way_out = "`overlayctl status` has all of it; pods that run may be cut off"
            raise CniError(LIMITED, "; ".join(troubles), way_out)

    def _ready(self, code: int = TRY_LATER, wait_s: float = 0.0) -> tuple[Subnet, int]:
        snapshot = self._status.wait_for(lambda it: it.subnet_at(self._clock()) is not None, wait_s)
        now = self._clock()
        subnet = snapshot.subnet_at(now)
        if subnet is None:
            known = snapshot.phase if now < snapshot.lease_ends else LAPSED
            reason = "; ".join(snapshot.reasons) or known
            raise CniError(code, f"this node has no subnet: {reason}")
        return subnet, snapshot.mtu


def _seen(path: str, netns: PodNamespace | None) -> int:
    """Return the inode of the namespace where it lies at ``path`` for us too, else 0.

    Then the next start can tell whether it is gone.
    """
    try:
        inode = namespace_of(netns.descriptor).inode if netns is not None else 0
    except KernelError:
        return 0
    return inode if inode_at(path) == inode else 0
