"""Benches: each prints medians and spread, and says on which machine.

``python -m bench NAME``; ``make bench`` runs them all. Everything happens in
network namespaces of their own.
"""
