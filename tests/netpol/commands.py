"""What nft's commands make of a table: as strict as the kernel about what is not there.

Only the forms that a change of ``inet overlay_policy`` is made of. Semantics:
nft(8), and what the kernel refuses: deleting what is absent or still used,
adding an element or an object that is there already (with another meaning).
"""

import copy

from tests.netpol.packets import Table, UnreadableError, elements_of, pairs_of, words_of


class RefusedError(Exception):
    """The kernel would refuse the transaction."""


def changed(table: Table, commands: str) -> Table:
    """Return the table after one transaction. Raises RefusedError."""
    after = copy.deepcopy(table)
    for line in commands.splitlines():
        words = words_of(line)
        verb, kind = words[0], words[1]
        if words[2:4] != ["inet", "overlay_policy"]:
            msg = f"for another table: {line}"
            raise UnreadableError(msg)
        name, rest = words[4], words[5:]
        if kind == "chain":
            _chain(after, verb, name)
        elif kind == "rule" and verb == "add":
            _known(name in after.chains, line)
            after.chains[name].append(rest)
        elif kind == "set":
            _set(after, verb, name, line)
        elif kind == "element":
            _element(after, verb, name, rest[1:-1], line)
        elif kind != "counter":
            msg = f"no command of ours: {line}"
            raise UnreadableError(msg)
    _check(after)
    return after


def _chain(table: Table, verb: str, name: str) -> None:
    if verb == "add":
        table.chains.setdefault(name, [])
        return
    _known(name in table.chains, f"{verb} chain {name}")
    if verb == "flush":
        table.chains[name] = []
        return
    used = [where for where, to in _jumps(table) if to == name]
    if used or table.chains[name]:
        msg = f"chain {name} is in use by {used}, or not empty"
        raise RefusedError(msg)
    del table.chains[name]


def _set(table: Table, verb: str, name: str, line: str) -> None:
    if verb == "add":
        if name in table.sets:
            msg = f"set {name} is there already"
            raise RefusedError(msg)
        table.sets[name] = set()
        return
    _known(verb == "delete" and name in table.sets, line)
    users = [c for c, rules in table.chains.items() if any(f"@{name}" in rule for rule in rules)]
    if users:
        msg = f"set {name} is in use by {users}"
        raise RefusedError(msg)
    del table.sets[name]


def _element(table: Table, verb: str, name: str, words: list[str], line: str) -> None:
    if name in table.maps:
        for element, verdict in pairs_of(words if verb == "add" else _with_any(words)):
            here = table.maps[name]
            if verb == "add":
                _known(here.get(element, verdict) == verdict, line)
                here[element] = verdict
            else:
                _known(element in here, line)
                del here[element]
        return
    _known(name in table.sets, line)
    elements = elements_of(words)
    if verb == "add":
        table.sets[name] |= set(elements)
        return
    for each in elements:
        _known(each in table.sets[name], line)
        table.sets[name].remove(each)


def _with_any(words: list[str]) -> list[str]:
    """Return elements to delete in the form of pairs."""
    found: list[str] = []
    for word in (*words, ","):
        found += [":", "any", ","] if word == "," else [word]
    return found


def _check(table: Table) -> None:
    """Refuse what points nowhere."""
    for where, target in _jumps(table):
        _known(target in table.chains, f"{where} goes to {target}")
    for name, rules in table.chains.items():
        for rule in rules:
            for word in rule:
                if word.startswith("@"):
                    _known(word[1:] in table.sets or word[1:] in table.maps, f"{name}: {rule}")


def _jumps(table: Table) -> list[tuple[str, str]]:
    found = [
        (f"map {name}", verdict[1])
        for name, verdicts in table.maps.items()
        for verdict in verdicts.values()
        if verdict[0] in {"jump", "goto"}
    ]
    for name, rules in table.chains.items():
        for rule in rules:
            for at, word in enumerate(rule):
                if word in {"jump", "goto"}:
                    found.append((f"chain {name}", rule[at + 1]))
    return found


def _known(is_there: bool, what: str) -> None:
    if not is_there:
        msg = f"the kernel knows of no such thing: {what}"
        raise RefusedError(msg)
