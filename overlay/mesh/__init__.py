"""What the nodes of a fabric measure of one another: messages, statistics, drawings. All pure.

Sockets, clocks and threads are in ``overlay.agent``.
"""
