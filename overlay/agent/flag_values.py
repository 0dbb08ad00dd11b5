"""Values of flags, from their text; each refuses what it cannot read, as argparse wants it."""

import argparse
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from overlay.ipam.spans import Span, parse_span
from overlay.model import duration
from overlay.model.address import Family, IPAddress, parse_node_address
from overlay.plan.prune import PruneLimit, parse_limit


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as ``90s``, ``1h30m`` or ``24h``.

    >>> parse_duration("1h30m")
    5400.0
    """
    try:
        return duration.parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def parse_margin(text: str) -> float:
    """Return seconds; a bare number counts minutes, as in flannel."""
    return parse_duration(f"{text}m" if text.isdigit() else text)


def parse_address(family: Family | None) -> Callable[[str], IPAddress]:
    """Return what parses a node's address of ``family``, of either where that is None."""

    def parse(text: str) -> IPAddress:
        try:
            return parse_node_address(text, family)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return parse


def parse_prune_limit(text: str) -> PruneLimit:
    """Return the limit in ``50%``, ``20`` or ``off``."""
    try:
        return parse_limit(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def parse_any_address(text: str) -> IPAddress:
    """Return any address, unlike a node's also that of no or every host."""
    try:
        return ip_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def parse_spans(text: str) -> tuple[Span, ...]:
    """Return the spans of addresses in a list with commas."""
    try:
        return tuple(parse_span(part) for part in text.split(",") if part.strip())
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{exc}; write ADDRESS, PREFIX or FIRST-LAST") from exc


def parse_port(text: str) -> int:
    """Return 0 to 65535."""
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        msg = f"{text!r} is not a port; use 1 to 65535, or 0 for none"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def parse_boolean(text: str) -> bool:
    """Return what ``true``, ``false``, ``1`` or ``0`` says."""
    if text.lower() not in {"true", "false", "1", "0"}:
        msg = f"{text!r}: write true or false"
        raise argparse.ArgumentTypeError(msg)
    return text.lower() in {"true", "1"}


def parse_path(text: str) -> Path:
    """Return an absolute path."""
    if not text.startswith("/"):
        msg = f"{text!r} is not an absolute path"
        raise argparse.ArgumentTypeError(msg)
    return Path(text)
