"""`tests` is a namespace package; `python -m pytest` finds it, bare `pytest` only so."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
