"""``leases watch``: changes as lines, for as long as somebody reads them.

The first view comes as ``held`` lines, so that a reader knows the whole
state. The store retries by itself; its trouble goes to standard error.
"""

import contextlib
import queue
import sys
import threading
from argparse import Namespace
from typing import Any

from overlay.cli.lease_records import Change, changes, record
from overlay.cli.out import Output, printable
from overlay.model.lease import LeaseView
from overlay.store.base import LeaseStore, StoreError


def watch_leases(_args: Namespace, store: LeaseStore, out: Output) -> int:
    """Print changes until interrupted; return 0.

    Raises StoreError when the store cannot be used before the first view.
    """
    stop = threading.Event()
    told: queue.SimpleQueue[LeaseView | BaseException | None] = queue.SimpleQueue()

    def watch() -> None:
        try:
            store.watch(told.put, told.put, stop)
        except BaseException as exc:
            told.put(exc)
            raise

    threading.Thread(target=watch, name="watch", daemon=True).start()
    view: LeaseView | None = None
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                item = told.get()
                if isinstance(item, LeaseView):
                    _print(view, item, out)
                    view = item
                elif item is not None and (view is None or not isinstance(item, StoreError)):
                    raise item
                else:
                    _complain(item, out)
    finally:
        stop.set()
    return 0


def _print(before: LeaseView | None, after: LeaseView, out: Output) -> None:
    for change in changes(before, after):
        out.event(_text(change), {**_document(change), "revision": after.revision})


def _document(change: Change) -> dict[str, Any]:
    return {"event": change.event, "lease": record(change.lease)}


def _text(change: Change) -> str:
    facts = record(change.lease)
    words = (facts[name] for name in ("subnet", "node", "public", "mac"))
    return f"{change.event:<8} {' '.join(printable(word) for word in words)} {facts['kind']}"


def _complain(error: BaseException | None, out: Output) -> None:
    """Tell that the store is away, or there again (None)."""
    text = "the store answers again" if error is None else str(error)
    if out.is_table:
        sys.stderr.write(f"overlayctl: {text}\n")
    else:
        event = "recovered" if error is None else "trouble"
        out.event(text, {"event": event, "message": text})
