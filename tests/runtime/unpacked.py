"""An image's files and settings, read from its OCI archive, and its programs run from there.

Source: OCI image specification 1.0 (opencontainers/image-spec).
"""

import gzip
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any


class UnpackedImage:
    """An image of one layer; ``root`` is its file system, sizes are in bytes."""

    def __init__(self, archive: Path, place: Path) -> None:
        self.root = place / "root"
        with tarfile.open(archive) as whole:
            manifest = _document(whole, _document(whole, "index.json")["manifests"][0])
            settings = _document(whole, manifest["config"])
            self.config: dict[str, Any] = settings["config"]
            (layer,) = manifest["layers"]
            self.packed_bytes = int(layer["size"])
            source = whole.extractfile(_blob(layer["digest"]))
            assert source is not None
            unpacked = place / "layer.tar"
            with gzip.open(source) as content, unpacked.open("wb") as target:
                while piece := content.read(1 << 20):
                    target.write(piece)
        self.unpacked_bytes = unpacked.stat().st_size
        self.root.mkdir()
        subprocess.run(["tar", "-C", str(self.root), "-xf", str(unpacked)], check=True)
        unpacked.unlink()

    def run(self, *words: str) -> str:
        """Return what a program says that sees only the image. Raises AssertionError."""
        environment = dict(text.split("=", 1) for text in self.config["Env"])
        apart = ("unshare", "--mount", "--net", "--propagation", "private")
        done = subprocess.run(
            [*apart, "chroot", str(self.root), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout


def _document(archive: tarfile.TarFile, what: str | dict[str, Any]) -> dict[str, Any]:
    name = what if isinstance(what, str) else _blob(what["digest"])
    file = archive.extractfile(name)
    assert file is not None
    document: dict[str, Any] = json.loads(file.read())
    return document


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
