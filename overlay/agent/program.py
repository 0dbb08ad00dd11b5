"""``overlayd`` as a program: what is set before the rest of it is imported."""

import gc
import importlib
import logging
import os
import sys
from typing import NoReturn


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
    _leave_openssl_out()
    from overlay.agent.start import main

    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


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
