"""The trials of an arm: which settings count, and which of them are the best."""

from __future__ import annotations

import pytest

from fetal_core.arms import choose
from fetal_core.trials import Status
from study_samples import (
    SEARCH,
    sweep,
    trial,
)


def test_settings_are_chosen_by_the_mean_over_seeds() -> None:
    trials = sweep()
    assert {arm: [t.number for t in best] for arm, best in choose(trials, SEARCH).items()} == {
        "deep": [2, 3],
        "wide": [6, 7],
    }
    trials[0] = trial(0, "deep", 0.01, 0, 0.99)  # one lucky seed: a mean of 0.75, still the best
    assert [t.number for t in choose(trials, SEARCH)["deep"]] == [0, 1]
    trials[0] = trial(0, "deep", 0.01, 0, 0.69)  # a mean of 0.6, as the other's
    trials[2:4] = [trial(n, "deep", 0.1, n - 2, 0.6) for n in (2, 3)]
    assert [t.number for t in choose(trials[::-1], SEARCH)["deep"]] == [0, 1]


@pytest.mark.parametrize("status", ["failed", "stopped", "unfinished"])
def test_settings_with_a_seed_that_did_not_finish_do_not_count(status: Status) -> None:
    trials = sweep()
    trials[3] = trial(3, "deep", 0.1, 1, 0.9, status)
    assert [t.number for t in choose(trials, SEARCH)["deep"]] == [0, 1]
    lost = [one for one in trials if one.number != 3]
    assert [t.number for t in choose(lost, SEARCH)["deep"]] == [0, 1]
