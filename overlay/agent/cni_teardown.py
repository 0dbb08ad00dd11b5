"""Attachments taken away again: by DEL and GC, by hand, and where an ADD failed or was killed.

A record outlives its link: what cannot be removed keeps its record, and with it
its addresses, until somebody tries again. Repeating any of it is safe.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from overlay.agent.attachments import Attachments
from overlay.agent.cni_request import WIRING, CniError
from overlay.agent.cni_witness import detached
from overlay.agent.events import Told
from overlay.agent.host_local import HostLocal
from overlay.agent.layer2 import Layer2
from overlay.agent.policy_gate import PolicyGate
from overlay.agent.turns import Turns
from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.netns import inhabited_namespaces, is_namespace_gone
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.rtnl_pool import RtnlPool
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.event import Kind

log = logging.getLogger(__name__)


class Teardown:
    """For any thread. Whatever makes or removes attachments takes ``turns``, one for a container.

    The interfaces of one container are wired with a view to one another.
    """

    def __init__(
        self,
        attachments: Attachments,
        layer2: Layer2,
        sockets: RtnlPool,
        note: Callable[[Kind, Callable[[], Told]], None],
        gate: PolicyGate | None = None,
        host_local: HostLocal | None = None,
    ) -> None:
        self._host_local = host_local
        self._attachments, self._layer2 = attachments, layer2
        self._sockets, self._note, self._gate = sockets, note, gate
        self.turns: Turns[str] = Turns()

    def drop(self, key: AttachmentKey, link: str, why: str) -> None:
        """Remove link and record, in the turn of the container. Raises KernelError, OSError."""
        if link:
            pods.detach(link)
        released = self._attachments.release(key)
        if self._host_local is not None:
            gone = self._host_local.release(key.container, key.interface)
            if gone:
                log.info("%s had %s of host-local", key, ", ".join(sorted(map(str, gone))))
        if released is not None:  # a DEL may come for what never was
            self._note(Kind.POD_DETACHED, lambda: detached(released, why))
        self._follow()

    def undo(self, attachment: Attachment, *, has_link: bool) -> None:
        """Take back an ADD that failed, in its turn. What stays is not complete, by its record."""
        try:
            if has_link and attachment.link:
                pods.detach(attachment.link)
            self._attachments.undo(attachment)
        except (KernelError, OSError) as exc:
            log.warning("%s failed and stays until DEL or GC: %s", attachment.key, exc)
        self._follow()

    def collect(self, network: str, kept: Collection[tuple[str, str]]) -> None:
        """Drop what a network has beside the (container, interface) pairs ``kept``.

        Links of the network that have lost their records are removed as well. All
        that can be dropped is. Raises CniError for the rest.
        """
        failed: list[str] = []
        for attachment in self._attachments.list(network):
            key = attachment.key
            if (key.container, key.interface) in kept:
                continue
            with self.turns.of(key.container):
                # One that changed meanwhile was being attached: the runtime's
                # list is older than it.
                if self._attachments.get(key) is not attachment:
                    continue
                try:
                    self.drop(key, attachment.link, "the runtime does not know it any more")
                except (KernelError, OSError) as exc:
                    failed.append(f"{key}: {exc}")
                    continue
                log.info("%s is collected", key)
        failed += self._collect_strays(network, kept)
        if failed:
            msg = f"{len(failed)} stale attachments stay: {'; '.join(failed)}"
            raise CniError(WIRING, msg, "GC may be repeated; the others are collected")

    def _collect_strays(self, network: str, kept: Collection[tuple[str, str]]) -> list[str]:
        """Remove the links of a network that there is no record of; return what failed."""
        valid = {pods.link_name(AttachmentKey(network, *pair)) for pair in kept}
        group, failed = pods.link_group(network), []
        with self._sockets.lent() as rtnl:
            links = pods.host_links(rtnl)
        strays = [name for name, info in links.items() if info.group == group and name not in valid]
        removed = [name for name in strays if name not in self._attachments.known_links()]
        for name in removed:
            try:
                pods.detach(name)
            except KernelError as exc:
                failed.append(str(exc))
                continue
            log.info("link %s, of no known attachment, is collected", name)
        if removed:
            self._attachments.settle(addresses_in_use)
            self._follow()
        return failed

    def recover(self) -> None:
        """Undo what was cut off, and forget pods that went while nobody looked.

        Raises KernelError where it cannot be told what the kernel has.
        """
        with RtnlSocket() as rtnl:
            links = pods.host_links(rtnl)
        inhabited = inhabited_namespaces()
        for attachment in self._attachments.list():
            is_there = (
                attachment.link in links
                if attachment.link
                else not is_namespace_gone(attachment.sandbox, attachment.netns_inode, inhabited)
            )
            if attachment.is_complete and is_there:
                continue
            try:
                self.drop(attachment.key, attachment.link, "it went while the agent was away")
            except (KernelError, OSError) as exc:
                log.warning("%s is gone, its record stays: %s", attachment.key, exc)
                continue
            log.info("%s is gone; its addresses are free again", attachment.key)
        self._attachments.settle(addresses_in_use)

    def release(self, container: object) -> list[Attachment]:
        """Drop every interface of a container; return them. Raises KernelError, OSError."""
        found = [a for a in self._attachments.list() if a.key.container == container]
        for attachment in found:
            with self.turns.of(attachment.key.container):
                self.drop(attachment.key, attachment.link, "released by hand")
            log.info("%s is released by hand", attachment.key)
        return found

    def look(self) -> tuple[set[str], list[Attachment], list[str]]:
        """Return the pods' links, the attachments, and the links that none is known for."""
        with RtnlSocket() as rtnl:
            links = set(pods.host_links(rtnl))
        # Links first: an attachment is known before its link is made.
        held = self._attachments.list()
        return links, held, sorted(links - {attachment.link for attachment in held})

    def release_strays(self) -> list[str]:
        """Remove the links that no attachment is known for; return them. Raises KernelError."""
        _, _, strays = self.look()
        for name in strays:
            pods.detach(name)
            log.info("link %s, of no known attachment, is removed by hand", name)
        return strays

    def _follow(self) -> None:
        """Take what is gone off all rules; what fails is done by the next audit."""
        if self._gate is not None:
            self._gate.wake()
        if not self._layer2.is_there:
            return
        try:
            with self._sockets.lent() as rtnl:
                self._layer2.follow(rtnl)
        except KernelError as exc:
            log.warning("%s", exc)


def addresses_in_use() -> Mapping[str, Sequence[IPAddress]]:
    """Return the addresses behind each pod's link. Raises KernelError."""
    with RtnlSocket() as rtnl:
        return pods.addresses_in_use(rtnl)
