"""The table of a synthetic cohort: which patient, plane, machine and part each image has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from fetal_core.config import Config
from fetal_core.phantom.seeds import stream

# the database's planes in the order of the digit in its file names
PLANES = (
    "Other",
    "Fetal abdomen",
    "Fetal brain",
    "Maternal cervix",
    "Fetal femur",
    "Fetal thorax",
)

# rows of the public table FETAL_PLANES_DB (Burgos-Artizzu et al., Sci. Rep. 10, 10200, 2020)
_PLANE_ROWS = dict(zip(PLANES, (4213, 711, 3092, 1626, 1040, 1718), strict=True))
_BRAIN_ROWS = {
    "Trans-thalamic": 1638,
    "Trans-cerebellum": 714,
    "Trans-ventricular": 597,
    "Other": 143,
}
_MACHINE_ROWS = {"Voluson E6": 5862, "Aloka": 5114, "Voluson S10": 1082, "Other": 342}
_OPERATOR_ROWS = {
    "Voluson E6": {"Op. 1": 2792, "Op. 2": 2435, "Other": 635},
    "Aloka": {"Op. 3": 3560, "Other": 1554},
    "Voluson S10": {"Other": 1082},
    "Other": {"Other": 342},
}
_TRAIN_SHARE = 7129 / 12400
_TEMPERED_BELOW = 3000


class PhantomConfig(Config):
    """A synthetic cohort.

    Attributes:
        images: number of images.
        patients: number of patients, at most one per image.
        seed: of everything random.
        like: label table in the database's format to imitate row by row; `images` and
            `patients` are then ignored.
        shortcut: chance that burned-in marks depend on the plane: 0 = unrelated.
    """

    images: int = Field(default=600, ge=12)
    patients: int = Field(default=80, ge=2)
    seed: int = Field(default=7, ge=0)
    like: str | None = None
    shortcut: float = Field(default=0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _patients_have_images(self) -> PhantomConfig:
        if self.like is None and self.patients > self.images:
            raise ValueError(f"patients ({self.patients}) must not exceed images ({self.images})")
        return self


@dataclass(frozen=True)
class Row:
    """One image of the table, in the database's own terms."""

    image_name: str
    patient: int
    plane: str
    brain_plane: str
    operator: str
    machine: str
    train: bool


def draw_rows(config: PhantomConfig) -> list[Row]:
    """Return the table of a cohort, in order of patient and plane.

    Proportions follow the public table; below 3,000 images those of the planes are flattened by
    a square root, so that each of the six has at least a tenth of the images. Patients are either
    for training or for testing, and every plane occurs in both parts.
    """
    rng = stream(config.seed, "cohort")
    power = 0.5 if config.images < _TEMPERED_BELOW else 1.0
    counts = _apportion(config.images, {k: v**power for k, v in _PLANE_ROWS.items()})
    parts: dict[bool, list[str]] = {True: [], False: []}
    for plane, count in counts.items():
        n_train = min(max(round(_TRAIN_SHARE * count), 1), count - 1)
        parts[True] += [plane] * n_train
        parts[False] += [plane] * (count - n_train)
    share = len(parts[True]) / config.images
    n_train_patients = min(max(round(share * config.patients), 1), config.patients - 1)
    numbers = (rng.permutation(config.patients) + 1).tolist()
    owners = {True: numbers[:n_train_patients], False: numbers[n_train_patients:]}
    rows: list[Row] = []
    for train, planes in parts.items():
        rows += _deal(planes, owners[train], train, rng)
    return sorted(rows, key=lambda row: (row.patient, PLANES.index(row.plane)))


def _apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Split a total by weights (largest remainders), with at least two for each key."""
    spare = total - 2 * len(weights)
    exact = {k: total * w / sum(weights.values()) for k, w in weights.items()}
    above = {k: max(v - 2.0, 0.0) for k, v in exact.items()}
    scaled = {k: spare * v / max(sum(above.values()), 1e-9) for k, v in above.items()}
    counts = {k: 2 + int(v) for k, v in scaled.items()}
    by_remainder = sorted(scaled, key=lambda k: scaled[k] - int(scaled[k]), reverse=True)
    for key in by_remainder[: total - sum(counts.values())]:
        counts[key] += 1
    return counts


def _deal(
    planes: list[str], patients: list[int], train: bool, rng: np.random.Generator
) -> list[Row]:
    """Give images to patients, one each and the rest at random, and name them."""
    extra = rng.choice(patients, size=len(planes) - len(patients)).tolist()
    owners = [*patients, *extra]
    shuffled = [planes[index] for index in rng.permutation(len(planes))]
    of = Counter(zip(owners, shuffled, strict=True))
    machines = {patient: _pick(_MACHINE_ROWS, rng) for patient in patients}
    operators = {patient: _pick(_OPERATOR_ROWS[machines[patient]], rng) for patient in patients}
    rows = []
    for (patient, plane), count in of.items():
        digit = PLANES.index(plane) + 1
        for index in range(1, count + 1):
            rows.append(
                Row(
                    image_name=f"Patient{patient:05d}_Plane{digit}_{index}_of_{count}",
                    patient=patient,
                    plane=plane,
                    brain_plane=(
                        _pick(_BRAIN_ROWS, rng) if plane == "Fetal brain" else "Not A Brain"
                    ),
                    operator=operators[patient],
                    machine=machines[patient],
                    train=train,
                )
            )
    return rows


def _pick(weights: Mapping[str, int], rng: np.random.Generator) -> str:
    odds = np.array(list(weights.values()), dtype=np.float64)
    return list(weights)[int(rng.choice(len(odds), p=odds / odds.sum()))]
