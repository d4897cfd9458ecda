"""Programs and rights that tests need: without them they are skipped or, on request, fail."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

NO_SKIPS = "FETAL_NO_SKIPS"


def lack(reason: str) -> NoReturn:
    """Skip the running test; where ``FETAL_NO_SKIPS`` is set, as in CI, fail it.

    ``@pytest.mark.needs(there, reason)`` does so unless ``there`` is true.
    """
    if os.environ.get(NO_SKIPS):
        pytest.fail(f"{reason} ({NO_SKIPS} is set)", pytrace=False)
    pytest.skip(reason)
