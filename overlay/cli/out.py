"""What commands print: tables for people, JSON or YAML for programs.

A table is drawn by rich on a terminal. Elsewhere it is plain columns, two
spaces apart, never cut and never wrapped. What comes from the store was
written by others: what could steer a terminal is shown as ``cat -v`` would.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

FORMATS: Final = ("table", "json", "yaml")
_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33"}  # ECMA-48, 8.3.117


class Output:
    """Prints in one of FORMATS to ``stream``."""

    def __init__(
        self,
        form: str,
        stream: TextIO | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.form = form
        self._stream = sys.stdout if stream is None else stream
        self._has_colour = self._stream.isatty() and wants_colour(environment)

    @property
    def is_table(self) -> bool:
        """Return whether people read it."""
        return self.form == "table"

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], document: Any
    ) -> None:
        """Print ``rows`` under ``columns`` for people, ``document`` for programs."""
        if not self.is_table:
            self.document(document)
            return
        cells = [[printable(cell) for cell in row] for row in rows]
        if self._stream.isatty():
            self._draw(columns, cells)
            return
        lines = [list(columns), *cells]
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        for line in lines:
            self._align(line, widths)

    def facts(self, facts: Mapping[str, object], document: Any) -> None:
        """Print one name and value a line for people, ``document`` for programs."""
        if not self.is_table:
            self.document(document)
            return
        width = max((len(name) for name in facts), default=0)
        for name, value in facts.items():
            self.line(f"{name:<{width}}  {printable(value)}".rstrip())

    def document(self, document: Any) -> None:
        """Print ``document`` as JSON or YAML; keys keep their order."""
        if self.form == "yaml":
            self._stream.write(_yaml(document))
        else:
            self._write(json.dumps(document, indent=2))

    def event(self, text: str, document: Any, colour: str = "") -> None:
        """Print one event at once: a line for people, a JSON line or a YAML document."""
        if self.form == "json":
            self._write(json.dumps(document, separators=(",", ":")))
        elif self.form == "yaml":
            self.line("---")
            self.document(document)
        else:
            self.line(text, colour)
        self._stream.flush()

    def line(self, text: str, colour: str = "") -> None:
        """Print one line; what could steer a terminal is shown. ``colour`` is for terminals."""
        shown = printable(text) if text else ""
        if colour and self._has_colour:
            shown = f"\x1b[{_COLOURS[colour]}m{shown}\x1b[0m"
        self._write(shown)

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")

    def _align(self, row: Sequence[str], widths: Sequence[int]) -> None:
        self.line("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip())

    def _draw(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*[Text(cell, overflow="fold") for cell in row])
        Console(file=self._stream).print(table)


def _yaml(document: Any) -> str:
    import yaml

    def dumped(dumper: Any) -> str:
        return str(yaml.dump(document, Dumper=dumper, sort_keys=False, default_flow_style=False))

    try:
        # libyaml's where PyYAML was built with it: a tenth of the time.
        return dumped(getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    except UnicodeEncodeError:  # half of a surrogate pair: the other one escapes it
        return dumped(yaml.SafeDumper)


def wants_colour(environment: Mapping[str, str]) -> bool:
    """Return whether a terminal may be coloured (no-color.org).

    >>> wants_colour({"TERM": "xterm"}), wants_colour({"TERM": "xterm", "NO_COLOR": "1"})
    (True, False)
    """
    return not environment.get("NO_COLOR") and environment.get("TERM") not in {None, "", "dumb"}


def printable(value: object) -> str:
    """Return ``value`` as one line of printable text; nothing shows as ``-``.

    >>> printable(None), printable("a" + chr(27) + "[2J"), len(printable(chr(7)))
    ('-', 'a^[[2J', 2)
    """
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, list | tuple):
        return " ".join(printable(item) for item in value)
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    r"""Return a control character as ``cat -v`` shows it, any other as ``\u2028``."""
    code = ord(character)
    return f"^{chr(code ^ 64)}" if code < 32 or code == 127 else f"\\u{code:04x}"
