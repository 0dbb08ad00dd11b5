"""Certificates of etcd, and of who talks to it, that are replaced. A row of the group ``store``.

Before each member stands a proxy that asks for a client's certificate and
shows one of its own; etcd behind it speaks plaintext.
"""

import contextlib
import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from overlay.lab.chaos.agent import change, with_peers
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted, Skipped
from overlay.lab.chaos.stage import Stage
from overlay.lab.chaos.store import GROUP, TARGET_S, used_percent
from overlay.lab.proxy import Proxy

_FEW: Final = 30
_PORTS: Final = 2000  # above etcd's
_REFUSED_S: Final = 5.0  # for which nobody takes the other's certificate
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_FILES: Final = {
    "--etcd-cafile": "ca.crt",
    "--etcd-certfile": "one.crt",
    "--etcd-keyfile": "one.key",
}


def faults() -> list[Fault]:
    """Return the fault; forwarding goes on through all of it."""
    return [
        Fault(
            "certificates of a new authority, on disk 5 s late",
            GROUP,
            _replaced,
            since=FROM_RETURN,
            is_lossless=True,
            target_s=TARGET_S,
        )
    ]


def _replaced(stage: Stage) -> Planted:
    if shutil.which("openssl") is None:
        msg = "no openssl; install the Debian package openssl"
        raise Skipped(msg)
    endpoints = stage.lab.topology.etcd_endpoints
    old, new, own = (stage.lab.dir.path / name for name in ("tls-old", "tls-new", "tls"))
    for place in (old, new):
        _authority(place, str(urlsplit(endpoints[0]).hostname))
    _install(old, own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_REQUIRED
    _show(context, old)
    stack = contextlib.ExitStack()

    def close() -> None:
        with stack:
            stage.restart(SUBJECT)

    try:
        proxies = [
            stack.enter_context(
                Proxy(
                    stage.namespace("underlay"),
                    url,
                    (urlsplit(url).port or 0) + _PORTS,
                    context=context,
                )
            )
            for url in endpoints
        ]
        flags = [f"{flag}={own / name}" for flag, name in _FILES.items()]
        stage.restart(SUBJECT, f"--etcd-endpoints={','.join(p.url for p in proxies)}", *flags)
        made = with_peers(stage, _FEW)
        _show(context, new)
        for proxy in proxies:
            proxy.cut()
        made = change(stage, made)
        percent = used_percent(stage, lambda: time.sleep(_REFUSED_S))
        leases = stage.leases()
        at = time.monotonic()
        _install(new, own)
    except BaseException:
        close()
        raise

    def undo() -> None:
        stage.delete(list(made))
        close()

    note = f"agents used {percent:.1f} % of a core meanwhile"
    return Planted(lambda: stage.is_in_step([SUBJECT], leases), at, undo, note=note)


def _show(context: ssl.SSLContext, place: Path) -> None:
    """Have new connections see the certificate of ``place``; clients of any of them are let in."""
    context.load_cert_chain(place / "one.crt", place / "one.key")
    context.load_verify_locations(place / "ca.crt")


def _install(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in _FILES.values():
        copied = target / f"{name}.new"
        copied.write_bytes((source / name).read_bytes())
        os.replace(copied, target / name)  # noqa: PTH105 - as who rotates certificates does


def _authority(place: Path, address: str) -> None:
    """Make an authority, and a certificate for both sides of a connection to ``address``."""
    place.mkdir(exist_ok=True)
    (place / "ext").write_text(f"subjectAltName=IP:{address}\n")
    _openssl(
        place, "req", "-x509", *_KEY, *_words("-keyout ca.key -out ca.crt -days 2 -subj /CN=ca")
    )
    _openssl(place, "req", *_KEY, *_words("-keyout one.key -out one.csr -subj /CN=etcd"))
    signer = "-req -in one.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext"
    _openssl(place, "x509", *_words(signer), "-out", "one.crt")


def _words(text: str) -> list[str]:
    return text.split()


def _openssl(place: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], check=True, cwd=place, capture_output=True)
