"""A VXLAN fabric for pods.

``overlay.model`` holds the values, ``plan``, ``policy`` and ``ipam`` decide,
``store`` and ``kernel`` do the I/O, ``agent``, ``cli`` and ``lab`` are the
programs. docs/architecture.md has the picture.
"""

__version__ = "0.1.0"
