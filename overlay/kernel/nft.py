"""Running ``nft``: one call is one transaction, or one listing.

All runs in the network namespace of the calling thread. A ruleset that nft or
the kernel refuses leaves what was there.
"""

import re
import subprocess
from typing import Final

from overlay.model.errors import OverlayError

_AT_LINE: Final = re.compile(r"^[^:\n]*:(\d+):\d+(?:-\d+)?: (.*)")


class NftError(OverlayError):
    """nft or the kernel refused; what was in the kernel before is there still.

    ``problem`` is the first line that nft wrote, ``line`` the number of the
    ruleset's line at fault and ``source`` its text, where nft names one.
    """

    def __init__(self, problem: str, line: int | None = None, source: str = "") -> None:
        self.problem = problem
        self.line = line
        self.source = source
        where = f" (line {line}: {_shortened(source)})" if line is not None else ""
        super().__init__(f"nftables: {problem}{where}")


def run_nft(*arguments: str, text: str = "", timeout_s: float = 30.0) -> str:
    """Run ``nft`` with ``text`` as its input and return what it printed. Raises NftError."""
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as exc:
        msg = "no `nft` on the PATH; install the Debian package nftables"
        raise NftError(msg) from exc
    except subprocess.TimeoutExpired as exc:
        msg = f"nft did not end within {timeout_s:g} s"
        raise NftError(msg) from exc
    except OSError as exc:
        msg = f"nft cannot be run: {exc}"
        raise NftError(msg) from exc
    if done.returncode != 0:
        raise _refusal(done.stderr, done.returncode, text)
    return done.stdout


def listed(table: str, timeout_s: float = 30.0) -> str | None:
    """Return ``nft --stateless list table TABLE``, None where there is none. Raises NftError."""
    try:
        return run_nft("--stateless", "list", "table", *table.split(), timeout_s=timeout_s)
    except NftError as exc:
        if "No such file or directory" in exc.problem:
            return None
        raise


def _refusal(stderr: str, status: int, text: str) -> NftError:
    first = next((line for line in stderr.splitlines() if line.strip()), "")
    if match := _AT_LINE.match(first):
        number = int(match[1])
        lines = text.splitlines()
        source = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        return NftError(match[2], number, source)
    return NftError(first or f"nft ended with status {status}")


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
