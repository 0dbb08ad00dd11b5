"""``overlayctl lab``, handed on: the lab stands above the other commands and imports them."""

import argparse
from importlib import import_module


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``lab`` and its commands; each sets ``run``."""
    import_module("overlay.lab.commands").add_parser(subparsers)
