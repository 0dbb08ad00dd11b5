"""Decisions about addresses: which subnet a node may claim, which config breaks leases. Pure."""
