"""Where leases live: one contract (``base``), kept in memory or in etcd.

Stores hand over whole views and change leases by compare-and-swap. They know
nothing of kernels.
"""

import os

# gRPC reads this when it is first imported. It would write to stderr, past
# every log format, what comes to us as an error anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
