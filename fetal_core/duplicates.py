"""The same image twice: exactly, by the hash of its pixels, or nearly, by a difference hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fetal_core.errors import Problem

MAX_HAMMING = 6
MIN_CORRELATION = 0.97
_CELLS = 2_000_000
_SHOWN = 5

Row = Mapping[str, Any]


def find_exact(rows: Sequence[Row]) -> list[Problem]:
    """One finding for each group of rows with the same pixels but not all of one file.

    Args:
        rows: columns of the manifest.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["pixel_hash"]].append(row)
    return [
        _exact_problem(group) for group in groups.values() if len({r["path"] for r in group}) > 1
    ]


def find_near(rows: Sequence[Row], thumbs: npt.NDArray[np.uint8]) -> list[Problem]:
    """One warning for each group of nearly equal images of several patients.

    Where no patient is known, every file counts as its own.

    Args:
        rows: columns of the manifest.
        thumbs: uint8 ``(rows, pixels)``, thumbnails that confirm what the difference hash suggests.
    """
    if len(rows) < 2:
        return []
    owners = [row["patient"] if row["patient"] is not None else f"/{row['path']}" for row in rows]
    blocks = near_pairs(
        np.array([row["dhash"] for row in rows], np.uint64),
        np.unique(owners, return_inverse=True)[1],
        np.unique([row["pixel_hash"] for row in rows], return_inverse=True)[1],
        thumbs,
    )
    links = np.arange(len(rows))
    for pairs in blocks:
        links = _linked(np.concatenate([pairs, np.stack([np.arange(len(rows)), links], 1)]))
    groups: dict[int, list[Row]] = defaultdict(list)
    for place, first in enumerate(links.tolist()):
        groups[first].append(rows[place])
    return [_near_problem(group) for group in groups.values() if len(group) > 1]


def near_pairs(
    dhashes: npt.NDArray[np.uint64],
    owners: npt.NDArray[np.intp],
    pixels: npt.NDArray[np.intp],
    thumbs: npt.NDArray[np.uint8],
) -> Iterator[npt.NDArray[np.intp]]:
    """Pairs ``(i, j)`` with ``i < j`` of different owners, other pixels and nearly equal looks.

    Every pair of hashes is compared, a block of rows at a time: memory does not grow with the
    number of pairs.
    """
    unit = _standardised(thumbs)
    rows = max(1, _CELLS // len(dhashes))
    for start in range(0, len(dhashes), rows):
        block = slice(start, start + rows)
        close = np.bitwise_count(dhashes[block, None] ^ dhashes[None, start:]) <= MAX_HAMMING
        close &= owners[block, None] != owners[None, start:]
        close &= pixels[block, None] != pixels[None, start:]
        close = np.triu(close, 1)
        left, right = np.flatnonzero(close.any(axis=1)), np.flatnonzero(close.any(axis=0))
        alike = unit[left + start] @ unit[right + start].T >= MIN_CORRELATION
        first, second = np.nonzero(close[np.ix_(left, right)] & alike)
        yield np.stack([left[first], right[second]], axis=1) + start


def _linked(pairs: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """For each number, the least one that pairs connect it with."""
    size = int(pairs.max()) + 1
    ones = np.ones(len(pairs), np.bool_)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    _, least = np.unique(component, return_index=True)
    return np.asarray(least[component], np.intp)


def _standardised(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    centred: npt.NDArray[np.float32] = thumbs.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    centred /= np.maximum(lengths, np.float32(1e-6))
    return centred


def _exact_problem(group: Sequence[Row]) -> Problem:
    same = "bytes" if len({row["sha256"] for row in group}) == 1 else "pixels"
    planes = sorted({str(row["plane"]) for row in group})
    patients = sorted({str(row["patient"]) for row in group})
    labels = {row["label"] for row in group}
    spare = ", ".join(repr(row["image_id"]) for row in group[1 : 1 + _SHOWN])
    remedy = f"Keep the right one and put the others into labels.exclude, e.g. {spare}"
    where = _names(group)
    if len(labels) > 1:
        reason = f"the same {same} with different labels: {', '.join(planes)}"
        return Problem("duplicate-with-other-label", where, reason, remedy, group[1]["row"])
    if len(patients) > 1:
        reason = f"the same {same} for different patients: {_list(patients)}"
        return Problem("duplicate-across-patients", where, reason, remedy, group[1]["row"])
    reason = f"the same {same} {len(group)} times"
    return Problem("duplicate-image", where, reason, remedy, group[1]["row"], "warning")


def _near_problem(group: Sequence[Row]) -> Problem:
    patients = sorted({str(row["patient"]) for row in group if row["patient"] is not None})
    of = f" of different patients: {_list(patients)}" if patients else ""
    return Problem(
        "near-duplicate",
        _names(group),
        f"nearly the same image {len(group)} times{of}",
        "Look at them; if they are one examination, give them one patient or exclude the others",
        group[1]["row"],
        "warning",
    )


def _names(group: Sequence[Row]) -> str:
    return _list([str(row["image_id"]) for row in group])


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
