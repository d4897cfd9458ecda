"""Which rows make up each batch of an epoch, for any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One optimizer step as one rank sees it.

    Attributes:
        step: number in the epoch, from 0.
        rows: rows of the whole batch, over all ranks.
        pieces: micro-batches of the whole batch.
        micro: this rank's micro-batches, each with its number in the batch and its row numbers.
    """

    step: int
    rows: int
    pieces: int
    micro: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True)
class BatchPlan:
    """Cuts epochs into batches.

    Every row is used exactly once an epoch. Batches differ by at most one row, so that none is too
    small for batch normalisation. Micro-batches are cut from the whole batch and then dealt to the
    ranks, so that their composition does not depend on the number of ranks while every rank gets
    one: up to ``batch_size / micro_batch`` ranks.
    """

    rows: int
    batch_size: int
    micro_batch: int | None
    world_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return max(1, math.ceil(self.rows / self.batch_size))

    @property
    def _sizes(self) -> tuple[int, int]:
        """Rows in the smallest and in the largest batch of an epoch."""
        return self.rows // self.steps, math.ceil(self.rows / self.steps)

    @property
    def smallest_micro_batch(self) -> int:
        """Rows in the smallest micro-batch of an epoch."""
        return min(size // self._pieces(size) for size in self._sizes)

    @property
    def most_ranks(self) -> int:
        """Up to how many ranks all micro-batches stay the same."""
        return min(math.ceil(size / (self.micro_batch or max(1, size))) for size in self._sizes)

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows of each rank in the largest batch of an epoch."""
        largest = self._sizes[1]
        split = np.array_split(np.arange(largest), self._pieces(largest))
        ranks = range(self.world_size)
        return tuple(sum(map(len, split[rank :: self.world_size])) for rank in ranks)

    def _pieces(self, rows: int) -> int:
        """Micro-batches of a batch, at least one for every rank."""
        return max(math.ceil(rows / (self.micro_batch or rows)), self.world_size)

    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[Batch]:
        """Batches of one epoch in an order that depends on (seed, epoch) alone.

        Args:
            epoch: from 0.
            rank: whose micro-batches.
            done: so many batches are left out at the beginning.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        for step, batch in enumerate(np.array_split(order, self.steps)[done:], done):
            pieces = self._pieces(len(batch))
            split = np.array_split(batch, pieces)
            mine = range(rank, pieces, self.world_size)
            micro = tuple((i, torch.from_numpy(split[i])) for i in mine if len(split[i]))
            yield Batch(step, len(batch), min(pieces, len(batch)), micro)


def evaluation_batch(size_px: int) -> int:
    """Rows to evaluate at once: about as many pixels as 64 images of 224 px have."""
    return max(1, 64 * 224**2 // size_px**2)


def evaluation_rows(rows: int, rank: int, world_size: int, size: int) -> Iterator[Tensor]:
    """This rank's rows in chunks; over the ranks every row comes exactly once."""
    mine = torch.arange(rows)[rank::world_size]
    if len(mine):
        yield from torch.split(mine, size)
