"""The man pages of the three programs, made of what their parsers and tables say."""

from typing import Final

from manual import roff
from overlay import __version__
from overlay.agent.flag_parser import flag_parser
from overlay.cli.main import parser
from overlay.cli.tree import Command, Word, command_tree
from overlay_cni import plugin

_EXIT: Final = (
    ("0", "fine"),
    ("1", "a finding, or what was asked cannot be"),
    ("2", "usage"),
    ("3", "unreachable: etcd, or no agent on the socket"),
    ("4", "the underlay does not fit"),
    ("5", "the kernel refused"),
    ("6", "a second node with this one's address or identity"),
    ("70", "a fault of the program; please report it"),
    ("130", "interrupted"),
)
_NAMES: Final = {
    "overlayctl": "ask and tell the overlay fabric",
    "overlayd": "agent of the overlay fabric",
    "overlay": "CNI plugin of the overlay fabric",
}


def pages(date: str) -> dict[str, str]:
    """Return each page by its file's name; ``date`` is when they were made, YYYY-MM-DD."""
    return {
        "overlayctl.1": _overlayctl(date),
        "overlayd.8": _overlayd(date),
        "overlay.8": _plugin(date),
    }


def _head(name: str, section: int, date: str) -> str:
    source = f"overlay {__version__}"
    return (
        roff.title(name, section, date, source)
        + roff.section("name")
        + f"{name} \\- {roff.escaped(_NAMES[name])}\n"
        + roff.section("synopsis")
    )


def _overlayctl(date: str) -> str:
    root = command_tree(parser())
    text = _head(root.name, 1, date) + roff.item(f"{root.name} [FLAG...] COMMAND", root.text)
    text += roff.section("commands")
    for command in root.walk():
        if command is not root and command.runs:
            text += _command(command)
    text += roff.section("flags of every command") + roff.items(_flags(root.flags))
    text += roff.section("environment")
    text += roff.paragraph(
        "Each flag of every command is also a variable, such as OVERLAYCTL_ETCD_ENDPOINTS; "
        "the flag wins. NO_COLOR, when it is not empty, keeps colours off terminals."
    )
    return text + _exit() + _see("overlayd(8), overlay(8)")


def _command(command: Command) -> str:
    words = [*command.words[1:], *(_usage(word) for word in command.arguments)]
    shown = [flag for flag in command.flags if flag.is_shown and "--help" not in flag.names]
    own = [flag for flag in shown if "--output" not in flag.names]
    return (
        roff.subsection(" ".join(words))
        + roff.paragraph(_sentence(command.text))
        + roff.items((_usage(word), word.text) for word in command.arguments if word.text)
        + roff.items(_flags(tuple(own)))
    )


def _overlayd(date: str) -> str:
    root = command_tree(flag_parser({}))
    text = _head(root.name, 8, date) + roff.item(f"{root.name} [FLAG...]", root.text)
    text += roff.section("flags") + roff.items(_flags(root.flags))
    text += roff.section("environment") + roff.paragraph(root.epilog)
    return text + _exit() + _see("overlayctl(1), overlay(8)")


def _plugin(date: str) -> str:
    since = {name.decode(): version for name, version in plugin.SINCE.items()}
    text = _head("overlay", 8, date)
    text += roff.item("overlay", "is executed by a container runtime, never by hand.")
    text += roff.section("description") + roff.paragraph(
        "Hands what a runtime asks to the agent of the node, overlayd, over a unix socket, and "
        "prints its answer. It takes its request from variables and standard input, as the "
        f"Container Network Interface says, in the versions {', '.join(plugin.VERSIONS)}."
    )
    text += roff.section("commands")
    text += roff.items(
        (
            name.decode(),
            "needs " + (", ".join(word.decode() for word in needs) or "no variable")
            + (f"; since CNI {since[name.decode()]}" if name.decode() in since else ""),
        )
        for name, needs in plugin.NEEDS.items()
    )  # fmt: skip
    text += roff.item("VERSION", "answered without the agent.")
    text += roff.section("environment")
    text += roff.paragraph(", ".join(word.decode() for word in plugin.PASSED))
    text += roff.section("files")
    text += roff.item(plugin.SOCKET.decode(), "the agent, unless the configuration has a socket")
    text += roff.section("exit status")
    text += roff.items((("0", "done"), ("1", "refused: standard output has CNI's error")))
    text += roff.section("example") + roff.example('{"type": "overlay", "mtu": 1400}')
    return text + _see("overlayctl(1), overlayd(8)")


def _flags(flags: tuple[Word, ...]) -> list[tuple[str, str]]:
    return [(_flag_usage(flag), _flag_text(flag)) for flag in flags if flag.is_shown]


def _flag_text(flag: Word) -> str:
    """Return what a flag means, and its default where its own words do not tell it."""
    text = flag.text or " or ".join(flag.choices)
    if not flag.default or "(" in text:
        return text
    return f"{text} (default: {flag.default})" if text else f"default: {flag.default}"


def _flag_usage(flag: Word) -> str:
    value = f" {flag.value}" if flag.value else ""
    return ", ".join(flag.names) + (f" [{value.strip()}]" if flag.is_optional else value)


def _usage(word: Word) -> str:
    shown = "|".join(word.choices) or word.value
    shown += "..." if word.is_many else ""
    return f"[{shown}]" if word.is_optional else shown


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and not text.endswith(".") else text


def _exit() -> str:
    return roff.section("exit status") + roff.items(_EXIT)


def _see(names: str) -> str:
    return roff.section("see also") + roff.paragraph(names)
