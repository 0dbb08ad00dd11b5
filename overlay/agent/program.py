"""``overlayd`` as a program: what is set before the rest of it is imported."""

import gc
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
    from overlay.agent.start import main

    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
