"""Certificates of a kubeconfig, by file or as data that stands in it; nothing is written anywhere.

lightkube writes such data to files of ``/tmp`` first (1.0.1), which a
container with a read-only root has not.
"""

import base64
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator

import msgspec
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import Cluster, User


def tls_context(config: SingleConfig) -> ssl.SSLContext:
    """Return whom to believe and how to show who we are; data comes before a file, as in kubectl.

    Raises OSError, ssl.SSLError and ValueError for what cannot be read.
    """
    cluster, user = config.cluster, config.user
    if not cluster.certificate_auth_data:
        context: ssl.SSLContext = verify_cluster(cluster, User(), config.abs_file)
    else:
        authority = base64.b64decode(cluster.certificate_auth_data, validate=True)
        context = ssl.create_default_context(cadata=authority.decode("ascii"))
    if user is not None and (user.client_cert or user.client_cert_data):
        certificate = _file(user.client_cert, user.client_cert_data, config.abs_file)
        key = _file(user.client_key, user.client_key_data, config.abs_file)
        with certificate as certificate_path, key as key_path:
            context.load_cert_chain(certificate_path or "", key_path)
    return context


def without_certificates(config: SingleConfig) -> SingleConfig:
    """Return ``config`` without what ``tls_context`` has read: lightkube would read it again."""
    user = config.user if config.user is not None else User()
    bare = msgspec.structs.replace(
        user, client_cert=None, client_cert_data=None, client_key=None, client_key_data=None
    )
    return config._replace(cluster=Cluster(server=config.cluster.server), user=bare)


@contextlib.contextmanager
def _file(
    path: str | None, data: str | None, abs_file: Callable[[str], object]
) -> Iterator[str | None]:
    """Give the path of a file in memory with ``data``, gone afterwards; without any, ``path``."""
    if not data:
        yield str(abs_file(path)) if path else None
        return
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - it has no path
        file.write(base64.b64decode(data, validate=True))
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
