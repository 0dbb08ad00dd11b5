"""A container image written by hand, so that no registry is asked: busybox, serving a page.

Source: OCI image specification 1.0 (opencontainers/image-spec, image-layout.md).
"""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any, Final

IMAGE: Final = "localhost/overlay-test:latest"
PORT: Final = 8080
# What a container serves: the address from which it is asked.
PAGE: Final = "cgi-bin/source"

_BUSYBOX: Final = Path("/bin/busybox")
_COMMANDS: Final = ("sh", "httpd", "nc", "ip")
_NOBODY: Final = "65534:65534"
# On the network of a host the port may be taken; such a container only stays.
_SERVE: Final = f"httpd -f -p {PORT} -h /www || exec nc -l -p 0"
_SCRIPT: Final = '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s" "$REMOTE_ADDR"\n'
_ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_V1: Final = "application/vnd.oci.image"


def write_image(target: Path) -> None:
    """Write the image as an OCI archive. Its program needs no privilege and no capability."""
    layer = _layer()
    config = _json(
        {
            "architecture": _ARCHITECTURE.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "User": _NOBODY,
                "Env": ["PATH=/bin"],
                "Cmd": ["sh", "-c", _SERVE],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_V1}.manifest.v1+json",
            "config": _descriptor(f"{_V1}.config.v1+json", config),
            "layers": [_descriptor(f"{_V1}.layer.v1.tar", layer)],
        }
    )
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                **_descriptor(f"{_V1}.manifest.v1+json", manifest),
                "annotations": {"org.opencontainers.image.ref.name": IMAGE},
            }
        ],
    }
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _json(index))
        for blob in (layer, config, manifest):
            _add(archive, f"blobs/{_digest(blob).replace(':', '/')}", blob)


def _layer() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "www", "www/cgi-bin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        _add(archive, "bin/busybox", _BUSYBOX.read_bytes(), 0o755)
        for name in _COMMANDS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        _add(archive, f"www/{PAGE}", _SCRIPT.encode(), 0o755)
    return packed.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()
