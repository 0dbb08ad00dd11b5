"""The errors that somebody acts on. What a user reads says what, where and the way out."""

from typing import ClassVar


class OverlayError(Exception):
    """Base of every error this project raises on purpose.

    ``exit_code`` is what a program ends with when nobody catches the error;
    the table is in docs/exit-codes.md and does not change between versions.
    """

    exit_code: ClassVar[int] = 1


class UsageError(OverlayError):
    """A flag or an argument cannot be used as given."""

    exit_code = 2


class ConfigError(OverlayError):
    """A network config names something that cannot be.

    ``key`` is the config key at fault, ``value`` what it held.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key = key
        self.value = value
        self.problem = problem
        super().__init__(f"network config: {cut(key)} {shown(value)}: {cut(problem, 500)}")


class LeaseFormatError(OverlayError):
    """A lease key or value cannot be read; the rest of the fabric goes on without it."""


class PlanConflictError(OverlayError):
    """Two desired kernel objects share one kernel key."""


def shown(value: object) -> str:
    """Return ``value`` for a message: text in quotes, and of what is long the beginning.

    >>> shown("a" * 100)[-8:], shown([1])
    ('aaaaa...', '[1]')
    """
    return cut(repr(value) if isinstance(value, str) else str(value))


def cut(text: str, most: int = 80) -> str:
    """Return ``text``, and of what is longer than ``most`` the beginning."""
    return text if len(text) <= most else text[: most - 3] + "..."


def usage_text(message: str) -> str:
    """Return argparse's ``message`` fit for a log: not too long, and no word but flags' names.

    What is not recognized may be a password behind a flag that is misspelled.

    >>> usage_text("unrecognized arguments: --etcd-pasword=secret")
    'unrecognized arguments: --etcd-pasword'
    """
    what, separator, words = message.partition("unrecognized arguments: ")
    if separator:
        flags = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
        message = what + separator + (" ".join(flags) or "a word that belongs to no flag")
    return message if len(message) <= 300 else message[:297] + "..."
