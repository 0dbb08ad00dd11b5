"""Text as man(7) macros: what is written stands on the page, whatever characters are in it."""

from collections.abc import Iterable


def escaped(text: str) -> str:
    r"""Return ``text`` for one line of roff; hyphens stay hyphens that can be copied.

    >>> escaped(".so it's a-b")
    "\\&.so it's a\\-b"
    """
    line = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def title(name: str, section: int, date: str, source: str) -> str:
    """Return the line that a page begins with."""
    return f'.TH {escaped(name.upper())} {section} {date} "{escaped(source)}"\n'


def section(name: str) -> str:
    """Return a heading."""
    return f".SH {name.upper()}\n"


def subsection(name: str) -> str:
    """Return a heading below one."""
    return f'.SS "{escaped(name)}"\n'


def paragraph(text: str) -> str:
    """Return the only paragraph below a heading."""
    return f"{escaped(text)}\n" if text else ""


def item(term: str, text: str) -> str:
    """Return a term in bold, and below it, indented, what it means."""
    return f".TP\n.B {escaped(term)}\n{escaped(text) or escaped('-')}\n"


def items(pairs: Iterable[tuple[str, str]]) -> str:
    """Return several terms."""
    return "".join(item(term, text) for term, text in pairs)


def example(lines: str) -> str:
    """Return lines as they are."""
    shown = "\n".join(escaped(line) for line in lines.strip("\n").splitlines())
    return f".nf\n{shown}\n.fi\n"
