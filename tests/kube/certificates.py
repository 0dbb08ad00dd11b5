"""A certificate authority of a test's own, and what it signs."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Authority:
    """Files of one authority and of the server that it vouches for."""

    ca: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_authority(folder: Path, *addresses: str) -> Authority:
    """Return an authority in ``folder`` and a server certificate for ``addresses``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ",".join(f"IP:{address}" for address in addresses)
    (folder / "ext").write_text(f"subjectAltName={names}\n")
    ca = ("-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=made up")
    _openssl(folder, "req", "-x509", *_KEY, *ca)
    request = ("-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=api")
    _openssl(folder, "req", *_KEY, *request)
    signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    result = ("-in", "server.csr", "-out", "server.crt", "-extfile", "ext")
    _openssl(folder, "x509", "-req", *signer, *result)
    return Authority(folder / "ca.crt", folder / "server.crt", folder / "server.key")


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], check=True, cwd=folder, capture_output=True)
