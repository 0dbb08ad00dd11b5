"""The backends that come with the fabric: pure planners, found through entry points.

A third party adds one by shipping a package with an entry point in the group
``overlay.backends``; docs/backends.md shows how.
"""
