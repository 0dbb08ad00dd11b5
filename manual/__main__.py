"""``python -m manual man DIR`` and ``python -m manual docs``: write what is made of the code."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from manual import metrics
from manual.pages import pages

_METRICS: Final = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def main(words: list[str]) -> int:
    """Write what is asked for; return an exit status."""
    if words[:1] == ["docs"] and len(words) == 1:
        _METRICS.write_text(metrics.page())
        return 0
    if words[:1] == ["man"] and len(words) == 2:
        # As reproducible-builds.org has it; else the day that the pages are made.
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
        place = Path(words[1])
        place.mkdir(parents=True, exist_ok=True)
        for name, text in pages(moment.strftime("%Y-%m-%d")).items():
            (place / name).write_text(text)
        return 0
    sys.stderr.write("usage: python -m manual docs | man DIR\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
