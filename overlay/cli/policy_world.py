"""The world as ``overlayctl`` sees it: read from the store, from wherever it runs."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from overlay.cli.flags import store_config
from overlay.cli.out import Output
from overlay.model.address import IPAddress
from overlay.model.document import parse_json
from overlay.model.errors import UsageError
from overlay.model.lease import LeaseView
from overlay.model.netpol import PodKey, World
from overlay.model.policy_view import PolicyView
from overlay.policy.network.subject import DEFAULT_NAMESPACE
from overlay.store.base import LeaseStore
from overlay.store.policy_source import PolicySource, PolicyStore

S = TypeVar("S")
Command = Callable[[Namespace, LeaseStore, S, Output], int]


def with_policies(command: Command[PolicySource]) -> Callable[[Namespace], int]:
    """Return the command as ``main`` calls it: with the stores, closed whatever happens."""
    return _opened(command, lambda source: source)


def with_policy_store(
    command: Command[PolicyStore], instead: str = "kubectl"
) -> Callable[[Namespace], int]:
    """Return the same for a command that writes; ``instead`` is what does so in Kubernetes."""

    def writable(source: PolicySource) -> PolicyStore:
        store = source.writable()
        if store is None:
            msg = f"this is an object of the Kubernetes API: use `{instead}`; agents follow"
            raise UsageError(msg)
        return store

    return _opened(command, writable)


def _opened(command: Command[S], chosen: Callable[[PolicySource], S]) -> Callable[[Namespace], int]:
    def run(args: Namespace) -> int:
        store: LeaseStore = args.open_store(store_config(args))
        try:
            return command(args, store, chosen(store.policies()), Output(args.output))
        finally:
            store.close()

    return run


def world_of(view: PolicyView, leases: LeaseView) -> World:
    """Return what policies are about, all nodes' pods as they tell of them."""
    nodes = {
        lease.node: frozenset(lease.attributes.public.values())
        for lease in leases.leases.values()
        if not lease.is_vacant
    }
    return World(
        view.pods,
        view.namespaces,
        view.policies,
        nodes,
        view.node_labels,
        cluster_policies=view.cluster_policies,
    )


def read_documents(name: str) -> list[Any]:
    """Return the documents of a YAML or JSON file, ``-`` for standard input. Raises UsageError.

    What YAML has beyond JSON is made text of, so that what is stored is what
    was checked.
    """
    import yaml

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        documents = [parse_json(json.dumps(d, default=str)) for d in yaml.safe_load_all(text)]
    except OSError as exc:
        msg = f"{name}: {exc.strerror}"
        raise UsageError(msg) from exc
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as exc:
        msg = f"{name}: not YAML that can be read: {' '.join(str(exc).split())[:300]}"
        raise UsageError(msg) from exc
    if not any(document is not None for document in documents):
        msg = f"{name}: no object in it"
        raise UsageError(msg)
    return documents


def parse_pod_name(text: str) -> PodKey:
    """Return ``NAMESPACE/NAME``; a name alone is one of the namespace ``default``."""
    namespace, slash, name = text.rpartition("/")
    if not name or "/" in namespace or (slash and not namespace):
        msg = f"{text!r} is no pod; write NAMESPACE/NAME"
        raise UsageError(msg)
    return namespace or DEFAULT_NAMESPACE, name


def parse_labels_given(words: list[str]) -> dict[str, str | None]:
    """Return the labels in ``KEY=VALUE`` and ``KEY-``, which takes one away."""
    found: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key:
            found[key] = value
        elif not equals and len(word) > 1 and word.endswith("-"):
            found[word[:-1]] = None
        else:
            msg = f"{word!r}: write KEY=VALUE to set a label, KEY- to take it away"
            raise UsageError(msg)
    return found


def addresses_of(text: str, world: World, version: int | None = None) -> list[IPAddress]:
    """Return the addresses that a pod's name, a node's name or an address means."""
    try:
        return [ip_address(text)]
    except ValueError:
        pass
    if "/" not in text and text in world.nodes:
        return sorted(world.nodes[text], key=lambda a: (a.version, int(a)))
    key = parse_pod_name(text)
    pod = world.pods.get(key)
    if pod is None:
        msg = f"no node tells of a pod {'/'.join(key)}; give an address, or look at `ipam list`"
        raise UsageError(msg)
    found = [a for a in pod.addresses if version is None or a.version == version]
    return sorted(found, key=lambda a: (a.version, int(a)))


def as_mapping(document: Any) -> Mapping[str, Any]:
    """Return a document that is an object, else an empty one."""
    return document if isinstance(document, Mapping) else {}
