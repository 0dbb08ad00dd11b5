"""Decisions about the kernel: what should be there, and what to do about the difference.

Pure: values in, values out. Nothing here knows which event came, or when.
"""
