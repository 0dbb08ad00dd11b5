"""The kernel's border: netlink, nftables and sysctls of the namespace the process is in.

Adapters do what they are told and report what they find; they decide nothing.
"""
