"""Trials of a made-up sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fetal_core.search import Value
from fetal_core.trials import Status, Trial


def made_trial(
    number: int,
    assignment: Mapping[str, Value],
    scores: Sequence[float],
    status: Status = "finished",
    **changes: Any,
) -> Trial:
    """A trial with a macro F1 for each of its epochs, half of it as its accuracy."""
    history = [
        {
            "epoch": index + 1,
            "val_macro_f1": score,
            "val_accuracy": score / 2,
            "is_best": int(score > max(scores[:index], default=-1.0)),
        }
        for index, score in enumerate(scores)
    ]
    plain: dict[str, Any] = {
        "arm": None,
        "reason": "",
        "epochs": len(scores),
        "parameters": 1000,
        "work_s": 60.0,
    }
    return Trial(number, dict(assignment), status=status, history=history, **(plain | changes))
