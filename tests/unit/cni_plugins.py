"""The forms of the CNI plugin as tests execute them, the way a runtime does."""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from overlay_cni.install import install_plugin, own_interpreter

_SHIM: Final = Path(__file__).resolve().parents[2] / "cni" / "shim"
FORMS: Final = ("python", "shim", "sanitized")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run left behind."""

    status: int
    output: bytes
    took_s: float

    @property
    def document(self) -> dict[str, Any]:
        """Return the one JSON document of the output. Raises AssertionError where it is another."""
        assert self.output.endswith(b"\n")
        assert self.output.count(b"\n") == 1
        loaded = json.loads(self.output)
        assert isinstance(loaded, dict)
        return loaded

    def error(self) -> tuple[int, str]:
        """Return code and message of an error, once its form is right."""
        assert self.status == 1
        assert list(self.document) == ["cniVersion", "code", "msg", "details"]
        assert self.output.isascii()
        assert self.document["details"]
        return self.document["code"], self.document["msg"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """One built form of the plugin."""

    form: str
    path: Path

    def run(
        self,
        variables: dict[str, str | bytes],
        stdin: bytes | int = b"",
        *,
        timeout_ms: int | None = None,
    ) -> Outcome:
        """Execute it with these variables and no others; ``stdin`` may be a descriptor."""
        environment: dict[str, str | bytes] = dict(variables)
        if timeout_ms is not None:
            environment["OVERLAY_CNI_TIMEOUT_MS"] = str(timeout_ms)
        started = time.monotonic()
        with subprocess.Popen(
            [self.path],
            env=environment,
            stdin=stdin if isinstance(stdin, int) else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            output, errors = process.communicate(
                None if isinstance(stdin, int) else stdin, timeout=90
            )
        took_s = time.monotonic() - started
        assert not errors, errors.decode(errors="replace")
        return Outcome(process.returncode, output, took_s)


def build(form: str, folder: Path) -> Plugin:
    """Return a form of the plugin, made in ``folder``; skip the test where it cannot be."""
    if form == "python":
        install_plugin(folder / "overlay", own_interpreter())
        return Plugin(form, folder / "overlay")
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("needs make and a C compiler (Debian: gcc libc6-dev make)")
    name, target = ("overlay", "all") if form == "shim" else ("overlay-sanitized", "sanitized")
    made = subprocess.run(
        ["make", "-s", "-C", _SHIM, f"BUILD={folder}", target],
        capture_output=True,
        text=True,
        check=False,
    )
    if form == "sanitized" and "cannot find" in made.stderr:
        pytest.skip("needs the compiler's sanitizers (Debian: libgcc-*-dev, libasan)")
    assert made.returncode == 0, made.stderr
    return Plugin(form, folder / name)
