"""What the kernel holds of ours, as the last dump says and what was done since."""

from collections.abc import Container, Iterable, Mapping

from overlay.model.kernel import KernelObject, Key, Op


def carry_over(mirror: dict[Key, KernelObject], ops: Iterable[Op], failed: Container[Op]) -> None:
    """Do to the mirror what was done to the kernel: all of ``ops`` but those that ``failed``."""
    for op in ops:
        if op in failed:
            continue
        if op.verb == "set":
            mirror[op.target.key] = op.target
        else:
            mirror.pop(op.target.key, None)


def is_foreign(op: Op, left: Mapping[Key, KernelObject], found: Mapping[Key, KernelObject]) -> bool:
    """Return whether an object is not as we left it, whatever the leases say since."""
    return left.get(op.target.key) != found.get(op.target.key)
