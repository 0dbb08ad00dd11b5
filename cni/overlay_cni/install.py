"""Puts the plugin where a runtime executes it: whole or not at all, and ready to run.

``python -m overlay_cni.install TARGET`` writes the Python form with the
interpreter that runs it, compiled; ``--shim FILE`` copies the built C form
instead. It must not decide where plugins belong; the caller knows.
"""

import argparse
import base64
import importlib.util
import marshal
import os
import secrets
import sys
from pathlib import Path
from typing import Final

_MODE: Final = 0o755
# The kernel reads 255 bytes of a first line, and cuts what is longer (BINPRM_BUF_SIZE).
_LONGEST_LINE: Final = 255  # bytes
# One argument is all that such a line can have: isolated, without site, without environment.
_FLAGS: Final = "-ISE"
# An interpreter compiles what it is given to run each time, and keeps nothing of it. Of another
# version it reads another form (MAGIC_NUMBER), and then there is the source.
_PROGRAM: Final = """\
{shebang}
# The CNI plugin `overlay`, and the same compiled: to compile it takes a third of its time.
from _frozen_importlib_external import MAGIC_NUMBER
from binascii import a2b_base64
from marshal import loads

SOURCE = r'''{source}'''
COMPILED = "{compiled}"
exec(loads(a2b_base64(COMPILED)) if MAGIC_NUMBER == {magic!r} else SOURCE)
"""


def install_plugin(target: Path, interpreter: Path) -> None:
    """Write the Python plugin to ``target`` as one executable file; repeating it is safe.

    ``interpreter`` must be absolute: what ``python3`` means differs with PATH,
    and looking it up costs time at each start.

    Raises ValueError when the kernel could not execute such an interpreter,
    OSError when the file cannot be written.
    """
    replace(target, _program(shebang(interpreter)).encode())


def _program(first_line: str) -> str:
    source = (Path(__file__).parent / "plugin.py").read_text(encoding="utf-8")
    code = compile(source, "plugin.py", "exec", dont_inherit=True, optimize=2)
    return _PROGRAM.format(
        shebang=first_line,
        source=source,
        compiled=base64.b64encode(marshal.dumps(code)).decode(),
        magic=importlib.util.MAGIC_NUMBER,
    )


def install_shim(target: Path, binary: Path) -> None:
    """Copy the built C plugin to ``target``; repeating it is safe. Raises OSError."""
    replace(target, binary.read_bytes())


def shebang(interpreter: Path) -> str:
    """Return the first line of the plugin's file.

    >>> shebang(Path("/usr/bin/python3"))
    '#!/usr/bin/python3 -ISE'

    Raises ValueError when the kernel could not execute it.
    """
    line = f"#!{interpreter} {_FLAGS}"
    if not interpreter.is_absolute() or any(char.isspace() for char in str(interpreter)):
        msg = f"interpreter {interpreter}: give an absolute path without white space"
        raise ValueError(msg)
    if len(line.encode()) > _LONGEST_LINE:
        msg = f"interpreter {interpreter}: the path is too long for a first line"
        raise ValueError(msg)
    return line


def replace(target: Path, content: bytes) -> None:
    """Write an executable file that is never seen half written, nor missing in between.

    A plugin that runs at that moment goes on with what it was. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name begins with a dot, so that no runtime takes it for a plugin.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opened above, with a mode
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def main(argv: list[str] | None = None) -> int:
    """Install as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m overlay_cni.install", description=__doc__)
    parser.add_argument("target", type=Path, help="the file to write, such as /opt/cni/bin/overlay")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--interpreter", type=Path, help="absolute path of the Python that runs it")
    form.add_argument("--shim", type=Path, help="the built C plugin, to be copied instead")
    options = parser.parse_args(argv)
    try:
        if options.shim is not None:
            install_shim(options.target, options.shim)
        else:
            install_plugin(options.target, options.interpreter or own_interpreter())
    except (OSError, ValueError) as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 2
    return 0


def own_interpreter() -> Path:
    """Return the interpreter beneath this one's virtual environment, which may go away."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


if __name__ == "__main__":
    sys.exit(main())
