"""Faults that are planted in a lab, and the command that names each."""
