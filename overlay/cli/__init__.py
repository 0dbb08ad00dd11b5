"""``overlayctl``: what people and scripts ask of the fabric.

Each command is a function ``(args, store, out)``, ``(args, out)`` or, where it
needs neither, ``(args)``, that returns an exit status. Errors are OverlayErrors
and become one line in ``main``.
"""
