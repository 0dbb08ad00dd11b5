"""Values that the whole fabric shares: parsed at the border, trusted inside.

Nothing here reads a clock, a file or a socket, and nothing here decides.
"""
