"""Benches: each prints medians with their spread beside a floor measured in the same run.

``python -m bench NAME``; ``make bench`` runs them all. Everything happens in
network namespaces of their own. What a bench knows of an agent is what the
kernel shows, so that another agent with flannel's flags and leases can be
measured on the same work (``--agent``).
"""
