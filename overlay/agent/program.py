"""``overlayd`` as a program: what is set before the rest of it is imported."""

import contextlib
import gc
import importlib
import logging
import os
import sys
from typing import Final, NoReturn

# mallopt(3): M_ARENA_MAX, and M_MMAP_THRESHOLD in bytes: glibc's own, but fixed.
_MALLOC: Final = ((-8, 1), (-3, 128 * 1024))


def run() -> NoReturn:
    """Run ``overlayd``, and end it at once.

    Threads that wait for the store hold nothing that must be put away first.
    """
    # Thousands of leases, and the modules themselves, make hundreds of thousands
    # of objects and hardly a cycle: looking for some every 700 cost a tenth of
    # joining 5,000 peers, and 12 ms of the start.
    if sys.argv[1:2] == ["probe"]:
        from overlay.agent.probe import main as probe

        sys.exit(probe(sys.argv[2:]))
    gc.set_threshold(50_000, 20, 20)
    _keep_one_heap()
    _leave_openssl_out()
    from overlay.agent.start import main

    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _keep_one_heap() -> None:
    """Have malloc keep what is free in one place, and give back what is large.

    glibc gives each of a few threads a heap of its own, and after the first large
    block that is freed keeps all up to 32 MiB; of 5,000 peers that was 5 MiB.
    Another C library than glibc has no ``mallopt``, and nothing is done then.
    """
    import ctypes  # not for a probe, which ends at once

    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC:
            mallopt(option, value)


def _leave_openssl_out() -> None:
    """Load ``asyncio`` and ``hashlib`` as on a Python without OpenSSL, which takes 5 MiB.

    gRPC has a TLS of its own, and Python the hashes that we use. Who needs
    ``ssl`` after all, as a client of Kubernetes does, imports it as ever.
    """
    names = [name for name in ("_hashlib", "ssl") if name not in sys.modules]
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # so is a module absent (import system)
    try:
        importlib.import_module("asyncio")
        importlib.import_module("hashlib")
        importlib.import_module("hmac")
    finally:
        for name in names:
            del sys.modules[name]


if __name__ == "__main__":
    run()
