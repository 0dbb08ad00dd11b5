"""Whether this host's clock agrees with etcd's, by the Date of its HTTP answers.

Leases do not depend on it: etcd counts their time by itself. Certificates and
tokens do, and whoever compares logs.
"""

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Final

from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Unknown, Verdict, warning
from overlay.store.etcd_config import EtcdConfig, parse_endpoint
from overlay.store.kube_config import KubeAccess

_ALLOWED_S: Final = 5.0
_ROUNDING_S: Final = 1.0  # a Date has whole seconds (RFC 9110, section 5.6.7)
_TIMEOUT_S: Final = 2.0


def _run(facts: Facts) -> Iterator[Verdict]:
    where = facts.where
    if isinstance(where, KubeAccess):
        yield Unknown("leases are in Kubernetes: only etcd is asked for its clock")
        return
    for endpoint in where.endpoints:
        try:
            before = time.monotonic()
            theirs = _date(where, endpoint)
            took_s = time.monotonic() - before
        except CannotTellError as exc:
            yield Unknown(str(exc))
            continue
        ahead_s = facts.wall_clock() - theirs
        beyond_s = max(ahead_s - took_s - _ROUNDING_S, -ahead_s)
        which = "ahead of" if ahead_s > 0 else "behind"
        if beyond_s > _ALLOWED_S:
            reason = f"this clock is {abs(ahead_s):.0f} s {which} that of {endpoint}"
            yield warning(f"{reason}: certificates fail early or late", "chronyc makestep")
        else:
            yield Fine(f"within {_ALLOWED_S:g} s of {endpoint}")


def _date(config: EtcdConfig, endpoint: str) -> float:
    """Return etcd's time of day in seconds since 1970. Raises CannotTellError."""
    address = parse_endpoint(endpoint)
    host = address.host.strip("[]")
    connection: http.client.HTTPConnection
    try:
        if address.is_secure:
            context = ssl.create_default_context(cafile=config.cafile)
            if config.certfile is not None:
                context.load_cert_chain(config.certfile, config.keyfile)
            connection = http.client.HTTPSConnection(
                host, address.port, timeout=_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, address.port, timeout=_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            text = connection.getresponse().getheader("Date")
        return parsedate_to_datetime(text or "").timestamp()
    except (OSError, http.client.HTTPException) as exc:
        msg = f"{endpoint} does not answer over HTTP: {exc}"
        raise CannotTellError(msg) from exc
    except (ValueError, TypeError) as exc:
        msg = f"{endpoint} says no time that can be read: {exc}"
        raise CannotTellError(msg) from exc


CHECK: Final = Check("clock", "this clock against etcd's", _run, Scope.STORE)
