"""What Ray Tune is told to try next, and when to stop, in a new and in a continued sweep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from fetal_core.config import parse
from fetal_core.recipe import Recipe
from fetal_core.search import Candidate, SearchConfig, candidates
from fetal_core.trials import Status, Trial
from ray_jobs.scheduler import make_scheduler
from ray_jobs.searcher import SweepSearcher, TpeSampler

RECIPE = Recipe()
SPACE = {
    "optim.name": {"choice": ["sgd", "adam"]},
    "optim.lr": {"loguniform": [1e-4, 1e-1]},
    "optim.momentum": {"uniform": [0.5, 0.95], "when": {"optim.name": "sgd"}},
}


def search(**settings: Any) -> SearchConfig:
    return parse(SearchConfig, {"space": SPACE, **settings}, "test")


def trial(number: int, status: Status, scores: list[float], **assignment: Any) -> Trial:
    history = [
        {"epoch": epoch, "val_macro_f1": score, "is_best": 1.0, "epoch_s": 1.0}
        for epoch, score in enumerate(scores, 1)
    ]
    return Trial(number, assignment, None, status, "", 10, 0, 0.0, history)


def begun(searcher: SweepSearcher) -> list[int]:
    numbers = []
    while (found := searcher.suggest(f"tune-{len(numbers)}")) != Searcher.FINISHED:
        numbers.append(found["number"])
    return numbers


def test_a_continued_sweep_runs_what_is_left_with_the_same_settings() -> None:
    config = search(trials=5)
    planned = candidates(config, RECIPE)
    known = [
        trial(0, "finished", [0.5]),
        trial(1, "unfinished", [], **planned[1].assignment),
        trial(2, "stopped", [0.1], **planned[2].assignment),
    ]
    new: list[tuple[int, Candidate]] = []
    searcher = SweepSearcher(
        config, RECIPE, planned, known, lambda number, one: new.append((number, one))
    )
    assert (searcher.left, searcher.total) == (3, 5)
    first = searcher.suggest("tune")
    assert first["number"] == 1
    assert Recipe(**first["recipe"]).optim.lr == planned[1].assignment["optim.lr"]
    assert begun(searcher) == [3, 4]
    assert new == [(3, planned[3]), (4, planned[4])]
    assert searcher.left == 0


def test_tpe_respects_conditions_and_learns() -> None:
    config = search(algorithm="tpe", trials=60, seed=1, include_default=False)
    sampler = TpeSampler(config, [])

    def score(assignment: dict[str, Any]) -> float:
        return 1.0 if assignment["optim.name"] == "adam" and assignment["optim.lr"] < 1e-3 else 0.1

    found = []
    for number in range(60):
        assignment = sampler.ask(number)
        assert ("optim.momentum" in assignment) == (assignment["optim.name"] == "sgd")
        found.append(score(assignment))
        sampler.tell(number, found[-1])
    # A random search hits the good corner in one of six trials.
    assert sum(found[30:]) / 30 > 0.5


def test_tpe_goes_on_from_earlier_trials() -> None:
    config = search(algorithm="tpe", trials=40, include_default=False)
    good = [
        trial(n, "finished", [1.0], **{"optim.name": "adam", "optim.lr": 2e-4 * (1 + n / 10)})
        for n in range(10)
    ]
    bad = [
        trial(10 + n, "stopped", [0.0], **{"optim.name": "sgd", "optim.lr": 0.05, **momentum})
        for n, momentum in enumerate([{"optim.momentum": 0.6}] * 10)
    ]
    failed = [trial(20, "failed", [], **{"optim.name": "adam", "optim.lr": 0.01})]
    sampler = TpeSampler(config, [*good, *bad, *failed])
    asked = [sampler.ask(21 + n) for n in range(10)]
    assert sum(one["optim.name"] == "adam" for one in asked) >= 7


def test_an_unfinished_tpe_trial_counts_when_it_ends() -> None:
    config = search(algorithm="tpe", trials=3)
    known = [trial(1, "unfinished", [], **{"optim.name": "adam", "optim.lr": 0.01})]
    sampler = TpeSampler(config, known)
    sampler.tell(1, 0.7)
    sampler.tell(0, 0.5)
    assert [t.value for t in sampler._study.get_trials()] == [0.7]


def test_tpe_passes_over_settings_that_do_not_go_together() -> None:
    space = {"optim.nesterov": {"choice": [True, False]}, "optim.momentum": {"choice": [0.0, 0.9]}}
    config = parse(SearchConfig, {"space": space, "algorithm": "tpe", "trials": 12}, "test")
    new: list[Recipe] = []
    searcher = SweepSearcher(config, RECIPE, [], [], lambda _, one: new.append(one.recipe))
    assert begun(searcher) == list(range(12))
    assert not any(recipe.optim.nesterov and recipe.optim.momentum == 0 for recipe in new)


def decision(
    scheduler: TrialScheduler,
    name: str,
    epoch: int,
    score: float,
    again: bool = False,
    number: int = 7,
) -> str:
    controller: Any = None
    stand_in: Any = SimpleNamespace(trial_id=name, config={"number": number})
    if epoch == 1:
        scheduler.on_trial_add(controller, stand_in)
    return scheduler.on_trial_result(
        controller, stand_in, {"epoch": epoch, "score": score, "again": again}
    )


@pytest.mark.parametrize(("known", "expected"), [(0, "CONTINUE"), (3, "STOP")])
def test_asha_remembers_the_trials_of_earlier_sessions(known: int, expected: str) -> None:
    earlier = [trial(n, "finished", [0.1, 0.8, 0.9]) for n in range(known)]
    scheduler = make_scheduler(search(grace_epochs=2), RECIPE, earlier)
    assert decision(scheduler, "new", 1, 0.0) == "CONTINUE"
    assert decision(scheduler, "new", 2, 0.3) == expected


def test_epochs_of_an_earlier_session_are_not_judged_again() -> None:
    earlier = [trial(n, "stopped", [0.5, 0.6]) for n in range(5)]
    scheduler = make_scheduler(search(grace_epochs=2), RECIPE, earlier)
    for epoch, score in enumerate((0.2, 0.3, 0.8), 1):
        assert decision(scheduler, "resumed", epoch, score, again=True) == "CONTINUE"
    assert decision(scheduler, "resumed", 4, 0.9) == "CONTINUE"
    assert decision(scheduler, "new", 1, 0.2) == "CONTINUE"
    assert decision(scheduler, "new", 2, 0.3) == "STOP"


def test_the_last_word_of_a_failed_trial_is_not_judged() -> None:
    scheduler = make_scheduler(search(grace_epochs=2), RECIPE, [])
    controller: Any = None
    stand_in: Any = SimpleNamespace(trial_id="failed", config={"number": 3})
    scheduler.on_trial_add(controller, stand_in)
    assert scheduler.on_trial_result(controller, stand_in, {"score": -1.0}) == "CONTINUE"
    scheduler.on_trial_complete(controller, stand_in, {"score": -1.0})


@pytest.mark.parametrize(("include", "expected"), [(True, "CONTINUE"), (False, "STOP")])
def test_the_default_is_not_stopped(include: bool, expected: str) -> None:
    earlier = [trial(n, "finished", [0.9, 0.9]) for n in range(1, 4)]
    scheduler = make_scheduler(search(grace_epochs=2, include_default=include), RECIPE, earlier)
    decision(scheduler, "default", 1, 0.1, number=0)
    assert decision(scheduler, "default", 2, 0.1, number=0) == expected


def test_nobody_is_stopped_at_the_last_epoch() -> None:
    config = search(grace_epochs=9)
    assert RECIPE.train.epochs == 10
    scheduler = make_scheduler(config, RECIPE, [])
    for epoch in range(1, 11):
        decision(scheduler, "good", epoch, 0.9)
    stops = [decision(scheduler, "bad", epoch, 0.1) for epoch in range(1, 11)]
    assert stops.index("STOP") == 8
    assert decision(scheduler, "late", 1, 0.0) == "CONTINUE"


@pytest.mark.parametrize("changed", [{"scheduler": "none"}, {}])
def test_probes_and_none_let_all_end(changed: dict[str, Any]) -> None:
    recipe = RECIPE
    if not changed:
        recipe = Recipe(train=RECIPE.train.model_copy(update={"mode": "probe"}))
    assert isinstance(make_scheduler(search(**changed), recipe, []), FIFOScheduler)
