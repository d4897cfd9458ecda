"""KubeRay's schemas, which lie beside a checkout with the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manifests import ROOT


@pytest.fixture(scope="session")
def kuberay_schemas() -> Path:
    """Folder of the schemas of KubeRay 1.7.0's kinds."""
    schemas = Path(os.environ.get("FETAL_SHARED", ROOT.parent / "shared")) / "schemas"
    if not schemas.is_dir():
        pytest.skip(f"KubeRay's schemas not found at {schemas}; set FETAL_SHARED")
    return schemas
