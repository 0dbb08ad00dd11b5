"""What a host has that is not ours: read to judge it, never changed.

All reads the network namespace of the calling thread; processes and files are
the host's. Errors are KernelErrors that say what could not be read.
"""
