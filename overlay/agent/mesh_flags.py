"""What ``overlayd`` is told about the mesh of probes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeshFlags:
    """``port`` 0 measures nothing. Times are in seconds; ``mtu_interval_s`` 0 asks for no MTU."""

    port: int = 0
    interval_s: float = 10.0
    mtu_interval_s: float = 600.0
    clamp: bool = False
