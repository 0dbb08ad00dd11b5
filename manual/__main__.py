"""``python -m manual docs``: write what is made of the code."""

import sys
from pathlib import Path
from typing import Final

from manual import metrics

_METRICS: Final = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def main(words: list[str]) -> int:
    """Write what is asked for; return an exit status."""
    if words[:1] == ["docs"] and len(words) == 1:
        _METRICS.write_text(metrics.page())
        return 0
    sys.stderr.write("usage: python -m manual docs\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
