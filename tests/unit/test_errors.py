"""Errors keep what they say on their way between processes."""

from __future__ import annotations

import pickle

import pytest

from fetal_core import errors
from fetal_core.errors import DataError, FetalError, ImageError, Problem

PROBLEMS = [Problem("too-small", f"images/{n}.png", "one pixel", "Drop it", n) for n in range(30)]
SPECIAL: dict[type[FetalError], FetalError] = {
    ImageError: ImageError("too-small", "one pixel", "Drop it"),
    DataError: DataError("The data cannot be used.", PROBLEMS),
}
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, FetalError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_pickled_errors_come_back_whole(kind: type[FetalError]) -> None:
    error = SPECIAL.get(kind) or kind("runs/a: no such run. Check the path.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
