"""A table between two marks of a document, written anew."""

from pathlib import Path

from overlay.lab.errors import LabUsageError


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between the marks of a document. Raises LabUsageError without them."""
    try:
        before, rest = path.read_text().split(begin)
        _, after = rest.split(end)
    except (OSError, ValueError) as exc:
        msg = f"{path} cannot be read, or has not once `{begin}` and `{end}`"
        raise LabUsageError(msg) from exc
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")
