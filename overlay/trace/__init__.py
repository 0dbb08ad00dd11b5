"""What a packet would do, from facts that were read: the way as steps, and filters for taps.

Decides and spells, and does no I/O. ``overlay.kernel`` reads the facts.
"""
