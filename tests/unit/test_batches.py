"""Batches of an epoch: every row once, the same batches for any number of ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fetal_core.batches import Batch, BatchPlan, evaluation_rows


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    """Any plan that ``fit`` allows: two rows for each rank in a full batch."""
    world = draw(st.integers(1, 4))
    smallest = 2 * world if world > 1 else 1
    return BatchPlan(
        rows=draw(st.integers(smallest, 120)),
        batch_size=draw(st.integers(smallest, 40)),
        micro_batch=draw(st.none() | st.integers(1, 12)),
        world_size=world,
        seed=draw(st.integers(0, 2**63)),
    )


def all_ranks(plan: BatchPlan, epoch: int = 0) -> list[tuple[Batch, ...]]:
    """For each step, the batch as every rank sees it."""
    ranks = range(plan.world_size)
    return list(zip(*(plan.epoch(epoch, rank) for rank in ranks), strict=True))


def pieces(batches: tuple[Batch, ...]) -> dict[int, list[int]]:
    """Rows of all micro-batches of a step by their number."""
    numbered = [item for batch in batches for item in batch.micro]
    found = {number: rows_N.tolist() for number, rows_N in numbered}
    assert len(found) == len(numbered)
    return found


def rows_of(batches: tuple[Batch, ...]) -> list[int]:
    """Rows of a step, sorted."""
    return sorted(row for piece in pieces(batches).values() for row in piece)


@given(plans(), st.integers(0, 5))
def test_every_row_comes_exactly_once_an_epoch(plan: BatchPlan, epoch: int) -> None:
    rows = [row for batches in all_ranks(plan, epoch) for row in rows_of(batches)]
    assert sorted(rows) == list(range(plan.rows))


@given(plans())
def test_batches_respect_their_size_and_are_nearly_equal(plan: BatchPlan) -> None:
    steps = all_ranks(plan)
    assert len(steps) == plan.steps == math.ceil(plan.rows / plan.batch_size)
    sizes = []
    for number, batches in enumerate(steps):
        assert {batch.step for batch in batches} == {number}
        assert {batch.rows for batch in batches} == {sum(map(len, pieces(batches).values()))}
        sizes.append(batches[0].rows)
    assert max(sizes) <= plan.batch_size
    assert max(sizes) - min(sizes) <= 1


@given(plans())
def test_every_rank_has_work_in_every_step_and_no_micro_batch_is_empty(plan: BatchPlan) -> None:
    for batches in all_ranks(plan):
        assert all(batch.micro for batch in batches)
        assert all(len(rows_N) for batch in batches for _, rows_N in batch.micro)


@given(plans())
def test_micro_batches_keep_to_their_limit(plan: BatchPlan) -> None:
    assume(plan.micro_batch is not None)
    for batches in all_ranks(plan):
        assert max(map(len, pieces(batches).values())) <= plan.micro_batch


@given(st.integers(1, 60), st.integers(1, 6), st.sampled_from([2, 3, 4]), st.integers(0, 99))
def test_micro_batches_do_not_depend_on_the_number_of_ranks(
    steps: int, micro: int, world: int, seed: int
) -> None:
    """Where the micro-batches of a batch can be dealt out evenly."""
    batch = micro * world * 2
    one = BatchPlan(steps * batch, batch, micro, 1, seed)
    many = replace(one, world_size=world)
    for alone, together in zip(all_ranks(one), all_ranks(many), strict=True):
        assert pieces(together) == pieces(alone)


@given(plans())
def test_up_to_most_ranks_micro_batches_stay_the_same(plan: BatchPlan) -> None:
    """One rank more cuts some batch into smaller ones."""
    alone = [pieces(batches) for batches in all_ranks(replace(plan, world_size=1))]
    for world, same in ((plan.most_ranks, True), (plan.most_ranks + 1, False)):
        together = [pieces(batches) for batches in all_ranks(replace(plan, world_size=world))]
        smallest = min(sum(map(len, batch.values())) for batch in alone)
        assume(smallest >= world)
        assert (together == alone) is same


@given(plans())
def test_shares_are_the_rows_of_each_rank_in_the_largest_batch(plan: BatchPlan) -> None:
    found = [
        tuple(sum(len(rows_N) for _, rows_N in batch.micro) for batch in batches)
        for batches in all_ranks(plan)
    ]
    assert plan.shares in found
    assert sum(plan.shares) == max(map(sum, found))


@given(plans())
def test_the_composition_of_batches_never_depends_on_the_number_of_ranks(plan: BatchPlan) -> None:
    alone = all_ranks(replace(plan, world_size=1))
    for one, many in zip(alone, all_ranks(plan), strict=True):
        assert rows_of(many) == rows_of(one)


@given(plans())
def test_a_plan_is_deterministic(plan: BatchPlan) -> None:
    first, again = all_ranks(plan, 3), all_ranks(replace(plan), 3)
    assert [pieces(batches) for batches in first] == [pieces(batches) for batches in again]


def test_epochs_and_seeds_differ() -> None:
    plan = BatchPlan(60, 60, None, 1, seed=0)
    orders = [
        tuple(pieces(all_ranks(variant, epoch)[0])[0])
        for variant in (plan, replace(plan, seed=1))
        for epoch in range(3)
    ]
    assert len(set(orders)) == 6


@given(st.integers(1, 100), st.integers(1, 5), st.integers(1, 64))
def test_evaluation_sees_every_row_once(rows: int, world: int, size: int) -> None:
    chunks = [c for rank in range(world) for c in evaluation_rows(rows, rank, world, size)]
    assert sorted(torch.cat(chunks).tolist()) == list(range(rows))
    assert all(0 < len(chunk) <= size for chunk in chunks)
