"""Whether the tunnel's UDP port is free for the kernel to receive on."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.kernel.host.sockets import bound_to, holder_of


def _run(facts: Facts) -> Iterator[Verdict]:
    links = facts.links().values()
    for port in facts.fabric().ports:
        if any(link.vxlan is not None and link.vxlan.port == port and link.is_up for link in links):
            # Two sockets cannot have one port: it is the kernel's own.
            yield Fine(f"UDP {port} is a VXLAN device's")
            continue
        others = bound_to(port)
        if not others:
            yield Fine(f"UDP {port} is free")
            continue
        holder = holder_of(others[0])
        reason = f"UDP {port} is taken by {holder or 'a process that cannot be seen'}"
        pid = holder.rpartition("pid ")[2].rstrip(")") if holder else ""
        find = f"ss -ulnp 'sport = :{port}'"
        remedy = f'systemctl stop "$(ps -o unit= {pid})"' if pid else find
        yield error(f"{reason}: the VXLAN device cannot be brought up", remedy)


CHECK: Final = Check("port-free", "who else is bound to the tunnel's UDP port", _run)
