"""The clock that also goes on while the machine sleeps."""

import time


def boot_clock() -> float:
    """Return monotonic seconds that also pass while the machine sleeps, as etcd's leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
