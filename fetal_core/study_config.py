"""Hypotheses that a sweep with arms is to decide."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fetal_core.config import Config, nearest
from fetal_core.errors import ConfigError
from fetal_core.search import SearchConfig

Measure = Literal["accuracy", "macro_f1", "gap"]


class Hypothesis(Config):
    """A claim that a measure is greater in one arm than in another.

    Attributes:
        claim: one sentence.
        arm: name of the arm with the greater value.
        other: name of the arm that it is compared with.
        measure: ``accuracy`` and ``macro_f1`` of the validation part, or ``gap``: training minus
            validation accuracy, both without augmentation.
    """

    claim: str = Field(min_length=1)
    arm: str
    other: str
    measure: Measure = "accuracy"


class StudyConfig(Config):
    """What a sweep with arms is to decide.

    Attributes:
        hypotheses: the claims.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """

    hypotheses: tuple[Hypothesis, ...] = ()
    resamples: int = Field(default=2000, ge=100)
    seed: int = Field(default=0, ge=0)


def check_study(study: StudyConfig, search: SearchConfig) -> None:
    """Refuse hypotheses about arms that are not there.

    Raises:
        ConfigError: all faults together.
    """
    names = list(search.arms)
    known = f"Known: {', '.join(names)}" if names else "The search has none: name search.arms"
    faults = []
    for number, hypothesis in enumerate(study.hypotheses):
        where = f"study.hypotheses.{number}"
        for side, name in (("arm", hypothesis.arm), ("other", hypothesis.other)):
            if name not in names:
                hint = nearest(name, names) or "."
                faults.append(f"{where}.{side}: no arm {name!r}{hint} {known}")
        if hypothesis.arm == hypothesis.other:
            faults.append(f"{where}: compares the arm {hypothesis.arm!r} with itself")
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise ConfigError(f"the study is not valid:\n{lines}")
