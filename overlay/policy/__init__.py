"""Decisions about packets: values in, one nftables ruleset as text out. Pure."""
