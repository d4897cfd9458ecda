"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images and tables; ``FETAL_SHARED`` or ``../shared`` beside the checkout."""
    shared = Path(os.environ.get("FETAL_SHARED", ROOT.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"real data not found at {shared}; set FETAL_SHARED to run this test")
    return shared / "data"


@pytest.fixture(scope="session")
def shared_weights(shared_data: Path) -> Path:
    """Folder of pretrained weights beside the real data."""
    weights = shared_data.parent / "weights"
    if not weights.is_dir():
        pytest.skip(f"weights not found at {weights}")
    return weights
