"""Dividing groups among parts so that every class keeps its share (stratified, grouped)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_ATTEMPTS = 10


def allocate(
    groups: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int32],
    shares: Sequence[float],
    generator: np.random.Generator,
) -> npt.NDArray[np.intp]:
    """Part of every row; rows of one group get one part.

    The best of a few randomised greedy runs: first each class, rarest first, puts one group into
    each part, in the order of the parts; then groups go, largest first, to the part that lacks
    most of their classes.

    Args:
        groups: int ``(rows,)``, which rows belong together.
        labels: int ``(rows,)``, class of each row.
        shares: wanted share of the rows for each part, summing to 1; a share of 0 gets none.

    Returns:
        int ``(rows,)``, index into ``shares``.
    """
    names, members = np.unique(groups, return_inverse=True)
    classes, codes = np.unique(labels, return_inverse=True)
    counts_GK = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(counts_GK, (members, codes), 1)
    wanted_P = np.asarray(shares, np.float64)
    attempts = [_attempt(counts_GK, wanted_P, generator) for _ in range(_ATTEMPTS)]
    best = min(attempts, key=lambda parts_G: _faults(parts_G, counts_GK, wanted_P))
    return best[members]


def _attempt(
    counts_GK: npt.NDArray[np.int64],
    wanted_P: npt.NDArray[np.float64],
    generator: np.random.Generator,
) -> npt.NDArray[np.intp]:
    order = generator.permutation(len(counts_GK))
    parts_G = np.full(len(counts_GK), -1)
    lacking_PK = wanted_P[:, None] * counts_GK.sum(axis=0)
    _seed(parts_G, order, counts_GK, lacking_PK, wanted_P)
    totals_K = counts_GK.sum(axis=0).astype(np.float64)
    sizes_G = counts_GK.sum(axis=1)
    for group in order[np.argsort(-sizes_G[order], kind="stable")]:
        if parts_G[group] >= 0:
            continue
        weights_K = counts_GK[group] / totals_K
        need_P = (lacking_PK * weights_K / totals_K).sum(axis=1)
        need_P = np.where(wanted_P > 0, need_P / np.maximum(wanted_P, 1e-9), -np.inf)
        part = int(np.argmax(need_P))
        parts_G[group] = part
        lacking_PK[part] -= counts_GK[group]
    return parts_G


def _seed(
    parts_G: npt.NDArray[np.intp],
    order: npt.NDArray[np.intp],
    counts_GK: npt.NDArray[np.int64],
    lacking_PK: npt.NDArray[np.float64],
    wanted_P: npt.NDArray[np.float64],
) -> None:
    """Give every part a group of every class while groups last; small parts get small groups."""
    sizes_G = counts_GK.sum(axis=1)
    for label in np.argsort((counts_GK > 0).sum(axis=0), kind="stable"):
        holders = order[counts_GK[order, label] > 0]
        for part in np.flatnonzero(wanted_P > 0):
            if (parts_G[holders] == part).any():
                continue
            free = holders[parts_G[holders] < 0]
            if not len(free):
                break
            group = free[np.argmin(np.abs(sizes_G[free] - 1))] if wanted_P[part] < 0.5 else free[0]
            parts_G[group] = part
            lacking_PK[part] -= counts_GK[group]


def _faults(
    parts_G: npt.NDArray[np.intp],
    counts_GK: npt.NDArray[np.int64],
    wanted_P: npt.NDArray[np.float64],
) -> tuple[int, float]:
    """Classes missing from parts, the first parts weighing most; then the worst share."""
    got_PK = np.zeros((len(wanted_P), counts_GK.shape[1]))
    np.add.at(got_PK, parts_G, counts_GK)
    missing_P = ((got_PK == 0) & (wanted_P[:, None] > 0)).sum(axis=1)
    ranks_P = 10 ** np.arange(len(wanted_P) - 1, -1, -1)
    off_PK = np.abs(got_PK / counts_GK.sum(axis=0) - wanted_P[:, None])
    return int(missing_P @ ranks_P), float(off_PK.max() + off_PK.mean())
