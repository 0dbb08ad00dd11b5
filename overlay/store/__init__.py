"""Where leases live: one contract (``base``), kept in memory or in etcd.

Stores hand over whole views and change leases by compare-and-swap. They know
nothing of kernels.
"""
