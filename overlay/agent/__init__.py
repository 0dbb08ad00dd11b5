"""``overlayd``: one thread a concern, and one reconciler that alone writes to the kernel.

watch (store to view), lessee (own lease), reconciler (view to kernel), HTTP
and control socket. What they share is in ``status``.
"""
