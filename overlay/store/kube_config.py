"""Where the Kubernetes API is and how to get in, as flags say it. Loads no Kubernetes client."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from overlay.model.errors import UsageError

# Flannel's names and defaults, so that its DaemonSet's flags do here too.
ANNOTATION_PREFIX: Final = "flannel.alpha.coreos.com"
NET_CONFIG_PATH: Final = Path("/etc/kube-flannel/net-conf.json")
# Where Kubernetes mounts the account of a pod.
ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class KubeAccess:
    """How to reach one cluster, and which of its nodes this is.

    Without ``kubeconfig`` the account in ``account_dir`` is used, at
    ``api_url`` where that is given. ``namespace`` holds the fabric's key;
    empty means the account's own. ``timeout_s`` is the time for one answer.
    Raises UsageError naming the flag for what cannot be used.
    """

    node_name: str = ""
    kubeconfig: str | None = None
    api_url: str | None = None
    account_dir: Path = ACCOUNT_DIR
    net_config_path: Path = NET_CONFIG_PATH
    annotation_prefix: str = ANNOTATION_PREFIX
    namespace: str = ""
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.api_url is not None:
            _check_url(self.api_url)
        if self.kubeconfig is not None and not Path(self.kubeconfig).is_file():
            msg = f"--kubeconfig-file {self.kubeconfig}: there is no such file"
            raise UsageError(msg)
        prefix = self.annotation_prefix
        if not prefix or prefix.count("/") > 1 or prefix.startswith("/"):
            msg = (
                f"--kube-annotation-prefix {prefix!r}: write a domain such as "
                f"{ANNOTATION_PREFIX}, with at most one slash"
            )
            raise UsageError(msg)

    @property
    def shown(self) -> str:
        """Return the way in as an operator would write it."""
        return self.api_url or self.kubeconfig or "the Kubernetes API of this pod's account"

    @property
    def stem(self) -> str:
        """Return what every annotation's name begins with.

        As flannel makes it of the flag (``pkg/subnet/kube/annotations.go``).

        >>> KubeAccess(annotation_prefix="example.org/net").stem
        'example.org/net-'
        """
        prefix = self.annotation_prefix
        if "/" not in prefix:
            return prefix + "/"
        return prefix if prefix.endswith(("/", "-")) else prefix + "-"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"https", "http"} and bool(parts.hostname)
        is_good = is_good and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good:
        msg = f"--kube-api-url {url[:80]!r}: write a URL such as https://192.0.2.10:6443"
        raise UsageError(msg)
