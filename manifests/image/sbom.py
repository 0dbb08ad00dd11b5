"""Prints what the image is made of, as CycloneDX 1.5: Debian's packages, and Python's.

``python3 sbom.py ENVIRONMENT``. Source: CycloneDX 1.5 JSON schema, and the
package URLs of purl-spec.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

_QUERY = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"


def debian() -> Iterator[dict[str, Any]]:
    """Return Debian's packages that are installed here."""
    words = ["dpkg-query", "--show", "--showformat", _QUERY]
    listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        name, version, architecture, source = line.split("\t")
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
        yield {
            **component(name, version, f"{purl}&distro=bookworm"),
            "properties": [{"name": "debian:source", "value": source}],
        }


def python(environment: Path) -> Iterator[dict[str, Any]]:
    """Return the distributions of a virtual environment."""
    (site,) = environment.glob("lib/python3*/site-packages")
    for found in distributions(path=[str(site)]):
        name = found.metadata["Name"].lower().replace("_", "-")
        yield component(name, found.version, f"pkg:pypi/{quote(name)}@{quote(found.version)}")


def component(name: str, version: str, purl: str) -> dict[str, Any]:
    """Return one entry."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(environment: Path) -> dict[str, Any]:
    """Return the whole document, in the order of names; the same image gives the same bytes."""
    parts = sorted([*debian(), *python(environment)], key=lambda part: str(part["bom-ref"]))
    own = next(part for part in parts if part["name"] == "overlay-fabric")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**own, "type": "container"}},
        "components": [part for part in parts if part is not own],
    }


if __name__ == "__main__":
    json.dump(bill(Path(sys.argv[1])), sys.stdout, indent=1)
