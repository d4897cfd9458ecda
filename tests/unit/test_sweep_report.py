"""The report of a sweep: true to the trials, self-contained, escaped, whole in any state."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fetal_core.config import parse
from fetal_core.markup import element
from fetal_core.plots import Axis
from fetal_core.recipe import Recipe
from fetal_core.report_parts import DataSummary
from fetal_core.search import Parameter, SearchConfig
from fetal_core.sweep_plots import (
    Coordinate,
    Path,
    Sweep,
    coordinate,
    importance_bars,
    parallel_coordinates,
)
from fetal_core.sweep_report import SweepContext, sweep_figures, write_sweep_report
from fetal_core.trials import Trial
from sweep_trials import made_trial
from test_report import EVIL, Page

RECIPE = Recipe()
CONTEXT = SweepContext(
    title="Sweep of planes",
    data=DataSummary("ab" * 32, "cd" * 32, {"train": {"Femur": 1300}, "val": {"Femur": 200}}),
    model={"architecture": "resnet18"},
    config={"train": {"epochs": 4}},
    problems=["a.png: truncated"],
    versions={"torch": "2.14.1"},
    wall_s=400.0,
    work_s=240.0,
    concurrency=2,
)
SPACE = {
    "optim.name": {"choice": ["sgd", "adamw"]},
    "optim.lr": {"loguniform": [1e-4, 1e-1]},
    "optim.momentum": {"uniform": [0.5, 0.95], "when": {"optim.name": "sgd"}},
    "optim.nesterov": {"choice": [True, False]},
    "optim.weight_decay": {"loguniform": [1e-6, 1e-3]},
}
ADAMW = {"optim.name": "adamw", "optim.lr": 1e-3, "optim.nesterov": True}


def search_of(**changes: object) -> SearchConfig:
    return parse(SearchConfig, {"space": SPACE} | changes, "test")


def made_trials() -> list[Trial]:
    sgd = {"optim.name": "sgd", "optim.lr": 0.05, "optim.nesterov": False}
    return [
        made_trial(0, {}, [0.5, 0.6, 0.7, 0.65]),
        made_trial(1, {**ADAMW, "optim.weight_decay": 0.0}, [0.6, 0.8, 0.9, 0.875]),
        made_trial(2, {**sgd, "optim.momentum": 0.6}, [0.3, 0.25], "stopped", epochs=4),
        made_trial(3, {**sgd, "optim.momentum": 0.9}, [0.2], "stopped", epochs=4),
        made_trial(4, ADAMW, [0.95], "failed", reason="no memory <script>", epochs=4),
        made_trial(5, {**sgd, "optim.momentum": 0.7}, [0.4, 0.5, 0.5, 0.6]),
        made_trial(6, ADAMW, [], "unfinished", epochs=4, work_s=0.0),
    ]


def page_of(trials: list[Trial], **changes: object) -> Page:
    return Page(write_sweep_report(trials, search_of(**changes), RECIPE, CONTEXT))


@pytest.fixture(scope="module")
def page() -> Page:
    return page_of(made_trials())


def test_figures_are_those_of_the_trials() -> None:
    figures = sweep_figures(made_trials(), search_of(), CONTEXT)
    assert json.loads(json.dumps(figures)) == {
        "metric": "val_macro_f1",
        "best_trial": 1,
        "best_score": 0.9,
        "default_score": 0.7,
        "trials": 7,
        "counts": {"finished": 3, "stopped": 2, "failed": 1, "unfinished": 1},
        "epochs_spent": 16,
        "epochs_planned": 28,
        "total_work_s": 360.0,
        "wall_s": 400.0,
        "work_s": 240.0,
        "concurrency": 2,
        "overhead_share": pytest.approx(400 / 120 - 1),
    }


def test_report_leads_with_the_best_trial_and_its_caution(page: Page) -> None:
    assert (
        "Trial 1 is the best, with a validation macro F1 of 0.900 at epoch 3. That is +0.200 "
        "against the default recipe (trial 0: 0.700). "
        "Of 7 trials: 3 finished, 2 stopped, 1 failed, 1 unfinished."
    ) in page.text
    assert "chosen among 6 trials with a score and is therefore optimistic" in page.text
    assert "The test part has not been read." in page.text


def test_every_trial_has_its_row_with_the_best_first(page: Page) -> None:
    rows = page.text[page.text.index("The best first") : page.text.index("Failures")]
    for row in (
        "1 the best 0.900 finished 4 of 4 3 adamw 0.001 - true 0 60 s",
        "0 the default recipe 0.700 finished 4 of 4 3 sgd 0.01 0.9 false 0.0001 60 s",
        "5 0.600 finished 4 of 4 4 sgd 0.05 0.7 false 0.0001 60 s",
        "2 0.300 stopped after epoch 2 2 of 4 1 sgd 0.05 0.6 false 0.0001 60 s",
        "3 0.200 stopped after epoch 1 1 of 4 1 sgd 0.05 0.9 false 0.0001 60 s",
        "4 0.950 failed 1 of 4 1 adamw 0.001 - true 0.0001 60 s",
        "6 - unfinished 0 of 4 - adamw 0.001 - true 0.0001 0 s",
    ):
        assert row in rows
        rows = rows[rows.index(row) :]


def test_epochs_and_time_are_accounted_for(page: Page) -> None:
    assert "ran 16 of the 28 epochs" in page.text
    assert "spared 5 by stopping 2 trials" in page.text
    assert "Stopped after epoch Planned Validation macro F1 then 3 1 4 0.200 2 2 4 0.250" in (
        page.text
    )
    assert "Overhead 233.3 %" in page.text
    calm = page_of([made_trial(0, {}, [0.5, 0.6])])
    assert "The scheduler stopped none" in calm.text


def test_report_asks_nothing_of_the_network_and_runs_nothing(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form", "a", "img"} & {
        t for t, _ in page.tags
    }
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "src") for name in attributes)
        assert all("url(" not in (value or "") for value in attributes.values())


def test_report_is_accessible(page: Page) -> None:
    assert len(page.all("h1")) == 1
    drawings = [tag for tag in page.all("svg") if "role" in tag]
    assert len(drawings) == 3
    assert all(tag["role"] == "img" and tag["aria-label"] for tag in drawings)
    assert len(page.all("caption")) == len(page.all("table"))


def test_no_string_becomes_markup() -> None:
    context = replace(CONTEXT, title=EVIL, problems=[EVIL], model={EVIL: EVIL}, config={EVIL: EVIL})
    search = search_of(space={"model.weights": {"choice": [EVIL, "imagenet"]}})
    trials = [
        made_trial(0, {"model.weights": EVIL}, [0.1, 0.3]),
        made_trial(1, {"model.weights": "imagenet"}, [0.1], "failed", reason=EVIL),
    ]
    page = Page(write_sweep_report(trials, search, RECIPE, context))
    assert not page.all("script")
    assert not page.all("img")
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert f"Trial 1: {EVIL}" in page.text


def test_extra_blocks_follow_the_trials() -> None:
    extra = [element("section", element("h2", "Hypotheses"), element("p", "a < b"))]
    text = write_sweep_report(made_trials(), search_of(), RECIPE, CONTEXT, extra)
    titles = ["<h2>Trials", "<h2>Hypotheses", "<h2>Learning curves", "<h2>Settings and score"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "a &lt; b" in text


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [made_trial(0, {}, [], "unfinished", epochs=4)],
        [made_trial(0, {}, [], "failed", reason="no memory", epochs=4)] * 2,
    ],
)
def test_a_sweep_without_scores_is_a_whole_page(trials: list[Trial]) -> None:
    page = page_of(trials)
    assert "No trial has a score yet." in page.text
    assert "Not rated" in page.text
    assert "Learning curves" not in page.text
    assert "Settings and score" not in page.text


def test_one_trial_is_a_whole_page() -> None:
    page = page_of([made_trial(0, {}, [0.5])])
    assert "It is the default recipe: no other did better." in page.text
    assert "chosen among 1 trial with" in page.text
    assert "Learning curves" not in page.text
    assert "Not rated" in page.text
    assert len(page.all("polyline")) == 1


def test_a_default_recipe_that_was_stopped_or_failed_is_said_to_be() -> None:
    best = made_trial(1, ADAMW, [0.6, 0.9])
    stopped = page_of([made_trial(0, {}, [0.5], "stopped", epochs=2), best])
    assert "(trial 0: 0.500, stopped after epoch 1)" in stopped.text
    failed = page_of([made_trial(0, {}, [0.5], "failed", epochs=2), best])
    assert "against the default recipe (" not in failed.text


def test_accuracy_is_written_in_percent() -> None:
    page = page_of(made_trials(), metric="val_accuracy")
    assert "a validation accuracy of 45.0 % at epoch 3. That is +10.0 points" in page.text


def test_lines_are_drawn_best_on_top_and_without_failed_trials(page: Page) -> None:
    paths = [tag for tag in page.all("polyline") if (tag["class"] or "").startswith("path")]
    assert len(paths) == 5
    assert [tag["class"] for tag in paths[-2:]] == ["path own c2", "path own c1"]
    curves = [tag["class"] for tag in page.all("polyline") if "line" in (tag["class"] or "")]
    assert curves[-2:] == ["line c2", "line c1"]
    assert sorted(curves[:-2]) == ["line c6", "line c7"]


def test_arms_have_a_column_and_an_axis() -> None:
    arms = {"plain": {"settings": {"optim.name": "sgd"}}, "adaptive": {"space": {}}}
    search = search_of(
        space={"train.seed": {"grid": [0, 1]}}, arms=arms, algorithm="grid", scheduler="none"
    )
    trials = [
        made_trial(0, {"optim.name": "sgd", "train.seed": 0}, [0.5, 0.6], arm="plain"),
        made_trial(1, {"train.seed": 1}, [0.5, 0.7], arm="adaptive"),
    ]
    page = Page(write_sweep_report(trials, search, RECIPE, CONTEXT))
    assert "1 the best 0.700 finished 2 of 2 2 adaptive 1 60 s" in page.text
    assert {"plain", "adaptive"} <= set(page.words)


def test_places_on_the_axes() -> None:
    log = coordinate("optim.lr", Parameter(loguniform=(1e-3, 1e-1)), [1e-2])
    assert log.share(1e-2) == pytest.approx(0.5)
    assert log.share(0.0) is None
    assert log.share(None) is None
    wider = coordinate("optim.lr", Parameter(uniform=(0.0, 1.0)), [2.0, None])
    assert wider.share(1.0) == pytest.approx(0.5)
    whole = coordinate("train.batch_size", Parameter(choice=(32, 8)), [16, 8])
    assert [text for _, text in whole.ticks()] == ["8", "16", "32"]
    assert whole.share(8) == pytest.approx(1 / 6)
    flag = coordinate("optim.nesterov", Parameter(choice=(True, False)), [True])
    assert flag.ticks() == [(0.25, "false"), (0.75, "true")]
    assert flag.share(True) == 0.75


def test_a_line_passes_below_an_axis_that_it_does_not_use() -> None:
    axes = [Coordinate("a", Axis("a", 0.0, 1.0)), Coordinate("b", ("x", "y"))]
    paths = [Path([1.0, "y"], 1.0, "trial 0", colour=1), Path([None, "x"], 0.0, "trial 1")]
    drawing = Page(parallel_coordinates("two axes", axes, paths))
    used, unused = (tag["points"].split() for tag in drawing.all("polyline"))
    bottom = max(float(tag["y2"]) for tag in drawing.all("line"))
    assert float(unused[0].split(",")[1]) > bottom
    assert all(float(point.split(",")[1]) <= bottom for point in (*used, unused[1]))
    assert drawing.text.count("not used") == 1
    assert "trial 1" in drawing.text


def test_bars_are_as_long_as_their_shares() -> None:
    drawing = Page(importance_bars("bars", {"optim.lr": 0.5, "optim.momentum": 0.25}))
    bars = [float(tag["width"]) for tag in drawing.all("rect") if tag["class"] == "bar"]
    track = float(drawing.all("rect")[0]["width"])
    assert bars == pytest.approx([track / 2, track / 4], abs=0.1)
    assert "50 %" in drawing.text


def test_order_puts_those_that_may_be_chosen_before_unfinished_and_failed_ones() -> None:
    trials = [
        made_trial(0, {}, [0.9], "failed"),
        made_trial(1, {}, [0.8], "unfinished"),
        made_trial(2, {}, [], "unfinished"),
        made_trial(3, {}, [0.1], "stopped"),
        made_trial(4, {}, [0.1]),
    ]
    sweep = Sweep(trials, search_of(), RECIPE)
    assert [trial.number for trial in sorted(trials, key=sweep.place)] == [3, 4, 1, 0, 2]
    assert sweep.best is trials[3]
