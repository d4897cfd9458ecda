"""A sweep as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fetal_core.importance import (
    LEAST_TRIALS,
    default_trial,
    importances,
    searched,
    settings,
    value_text,
)
from fetal_core.markup import Html, element, escape, figure, page, percent, section, table
from fetal_core.recipe import Recipe
from fetal_core.report_parts import (
    ReportContext,
    card,
    data_section,
    facts,
    model_section,
    problem_section,
)
from fetal_core.search import SearchConfig
from fetal_core.sweep_plots import (
    Sweep,
    importance_bars,
    learning_curves,
    setting_lines,
)
from fetal_core.trials import Status, Trial, best_trial, ranked


@dataclass(frozen=True, kw_only=True)
class SweepContext(ReportContext):
    """What the report says besides the trials; ``history`` is not shown, as every trial has one.

    Attributes:
        wall_s: time that the sweep took; of one that was resumed, the last session's.
        work_s: time that trials worked in it.
        concurrency: trials that may run at once.
    """

    wall_s: float
    work_s: float
    concurrency: int


def sweep_figures(
    trials: Sequence[Trial], search: SearchConfig, context: SweepContext
) -> dict[str, Any]:
    """The numbers of a sweep by name, ready for JSON; None where there is nothing to tell.

    ``overhead_share`` is the wall time beyond ``work_s`` spread evenly over ``concurrency`` places,
    as a share of the latter; ``total_work_s`` is that of all trials, over all sessions.
    """
    best, default = best_trial(trials, search.metric), default_trial(trials)
    wall_s, even_s = context.wall_s, context.work_s / context.concurrency
    counts = Counter(trial.status for trial in trials)
    return {
        "metric": search.metric,
        "best_trial": best.number if best else None,
        "best_score": best.score(search.metric) if best else None,
        "default_score": default.score(search.metric) if default else None,
        "trials": len(trials),
        "counts": {status: counts[status] for status in get_args(Status)},
        "epochs_spent": sum(len(trial.history) for trial in trials),
        "epochs_planned": sum(trial.epochs for trial in trials),
        "total_work_s": sum(trial.work_s for trial in trials),
        "wall_s": wall_s,
        "work_s": context.work_s,
        "concurrency": context.concurrency,
        "overhead_share": wall_s / even_s - 1 if even_s > 0 else None,
    }


def write_sweep_report(
    trials: Sequence[Trial],
    search: SearchConfig,
    recipe: Recipe,
    context: SweepContext,
    extra: Sequence[Html] = (),
) -> str:
    """HTML of the report; ``extra`` blocks follow the table of trials."""
    sweep = Sweep(trials, search, recipe)
    figures = sweep_figures(trials, search, context)
    blocks = [
        element("p", _lead(sweep, figures), css="lead"),
        element("div", *_cards(sweep, figures), css="cards"),
        _caution(sweep),
        problem_section(context.problems),
        _trial_section(sweep),
        *extra,
        _chart_section("Learning curves", learning_curves(sweep)),
        _chart_section("Settings and score", setting_lines(sweep)),
        _importance_section(sweep),
        _stopping_section(sweep, figures),
        _time_section(figures),
        data_section(context.data),
        model_section(context),
    ]
    scheduler = "ASHA stops the worst early" if search.scheduler == "asha" else "none is stopped"
    subtitle = f"Sweep of {_count(len(trials))}, {search.algorithm} search, {scheduler}"
    return page(context.title, subtitle, blocks)


def _lead(sweep: Sweep, figures: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in figures["counts"].items() if count)
    total = f"Of {_count(len(sweep.trials))}: {counts}." if sweep.trials else ""
    best, top = sweep.best, figures["best_score"]
    if best is None or best.best is None:
        return f"No trial has a score yet. {total}"
    return (
        f"Trial {best.number} is the best, with a validation {sweep.score_name} of "
        f"{sweep.score_text(top)} at epoch {best.best['epoch']}.{_beside(sweep, figures)} {total}"
    )


def _beside(sweep: Sweep, figures: dict[str, Any]) -> str:
    default, base = sweep.default, figures["default_score"]
    if default is None or base is None:
        return ""
    if default is sweep.best:
        return " It is the default recipe: no other did better."
    cut = f", stopped after epoch {len(default.history)}" if default.status == "stopped" else ""
    return (
        f" That is {_gain(sweep, figures['best_score'] - base)} against the default recipe "
        f"(trial {default.number}: {sweep.score_text(base)}{cut})."
    )


def _gain(sweep: Sweep, difference: float) -> str:
    points = f"{100 * difference:+.1f} points"
    return points if sweep.is_share else f"{difference:+.3f}"


def _caution(sweep: Sweep) -> Html:
    scored = _count(len(ranked(sweep.trials, sweep.search.metric)))
    return element(
        "p",
        f"These are validation figures. The best was chosen among {scored} with a score and is "
        "therefore optimistic: the more trials, the more of its lead is luck. "
        "The test part has not been read.",
        css="note",
    )


def _cards(sweep: Sweep, figures: dict[str, Any]) -> list[Html]:
    top, base, best = figures["best_score"], figures["default_score"], sweep.best
    gain = "-" if top is None or base is None else _gain(sweep, top - base)
    counts = figures["counts"]
    ended = f"{counts['finished']} finished, {counts['stopped']} stopped early"
    spent, planned = figures["epochs_spent"], figures["epochs_planned"]
    share = percent(spent / planned, 0) if planned else "-"
    work = f"{_duration(figures['work_s'])} of work, up to {figures['concurrency']} at once"
    return [
        card(
            f"Best validation {sweep.score_name}",
            sweep.score_text(top),
            f"trial {best.number}" if best else "no score yet",
        ),
        card("Against the default recipe", gain, f"default: {sweep.score_text(base)}"),
        card("Trials", f"{len(sweep.trials)}", ended),
        card("Epochs", f"{spent:,}", f"{share} of {planned:,} planned"),
        card("Wall time", _duration(figures["wall_s"]), work),
    ]


def _trial_section(sweep: Sweep) -> Html:
    names = list(searched(sweep.search))
    head = ["Trial", f"Validation {sweep.score_name}", "Status", "Epochs", "Best epoch"]
    failures = [
        element("li", f"Trial {trial.number}: {trial.reason}")
        for trial in sweep.trials
        if trial.status == "failed"
    ]
    return section(
        "Trials",
        table(
            "The best first; a dash where a trial does not use a setting",
            [*head, *map(_breakable, names), "Work"],
            [_row(sweep, trial, names) for trial in sorted(sweep.trials, key=sweep.place)],
        ),
        element("h3", "Failures") if failures else "",
        element("ul", *failures, css="failures") if failures else "",
    )


def _row(sweep: Sweep, trial: Trial, names: Sequence[str]) -> list[object]:
    used = settings(trial, sweep.search, sweep.recipe)
    remark = sweep.remarks(trial)
    stopped = trial.status == "stopped"
    epoch = element("small", f"after epoch {len(trial.history)}") if stopped else ""
    return [
        Html(f"{trial.number} {element('small', remark)}") if remark else trial.number,
        sweep.score_text(sweep.score(trial)),
        element("td", trial.status, epoch),
        element("td", f"{len(trial.history)} of {trial.epochs}", css="whole"),
        trial.best["epoch"] if trial.best else "-",
        *(value_text(used.get(name)) for name in names),
        _duration(trial.work_s),
    ]


def _chart_section(title: str, chart: Html) -> Html:
    return section(title, chart) if chart else chart


def _importance_section(sweep: Sweep) -> Html:
    shares = importances(sweep.trials, sweep.search, sweep.recipe)
    title = "Importance of the settings"
    if not shares:
        text = (
            f"Not rated: it takes at least {LEAST_TRIALS} trials with scores and settings that "
            "differ, all within the searched values."
        )
        return section(title, element("p", text))
    bars = figure(
        importance_bars("Importance of each setting", shares),
        "Share of the score's variance over the searched values that a setting explains alone; "
        "of one with a condition, among the trials that use it",
    )
    return section(
        title,
        element("div", bars, css="bars"),
        element(
            "p",
            "Estimated by functional analysis of variance over a random forest, from the trials "
            "within the searched values; those stopped early count with what they had reached. "
            f"With few trials (here {len(sweep.trials)}) it is rough, and small shares may be "
            "chance.",
            css="note",
        ),
    )


def _stopping_section(sweep: Sweep, figures: dict[str, Any]) -> Html:
    stopped = [trial for trial in sweep.trials if trial.status == "stopped"]
    spared = sum(trial.epochs - len(trial.history) for trial in stopped)
    text = (
        f"The trials ran {figures['epochs_spent']:,} of the {figures['epochs_planned']:,} epochs "
        "that all of them would have taken to their ends. "
    )
    if not stopped:
        return section("Early stopping", element("p", f"{text}The scheduler stopped none."))
    text += f"The scheduler spared {spared:,} by stopping {_count(len(stopped))}."
    rows = [
        [
            trial.number,
            len(trial.history),
            trial.epochs,
            sweep.score_text(trial.history[-1][sweep.search.metric] if trial.history else None),
        ]
        for trial in sorted(stopped, key=lambda trial: (len(trial.history), trial.number))
    ]
    head = ["Trial", "Stopped after epoch", "Planned", f"Validation {sweep.score_name} then"]
    return section("Early stopping", element("p", text), table("Stopped trials", head, rows))


def _time_section(figures: dict[str, Any]) -> Html:
    even_s = figures["work_s"] / figures["concurrency"]
    values = {
        "Wall time": _duration(figures["wall_s"]),
        "Work of trials in it": _duration(figures["work_s"]),
        f"Work spread over {figures['concurrency']} at once": _duration(even_s),
        "Overhead": percent(figures["overhead_share"]),
        "Work of all trials": _duration(figures["total_work_s"]),
    }
    note = (
        "Overhead is the wall time beyond the evenly spread work, as a share of that work: "
        "starting processes, loading, scheduling, and places left empty towards the end. Of a "
        "sweep that was resumed, wall time is that of its last session."
    )
    return section("Time", facts(values), element("p", note, css="note"))


def _count(trials: int) -> str:
    return "1 trial" if trials == 1 else f"{trials} trials"


def _breakable(name: str) -> Html:
    return Html(escape(name).replace(".", ".<wbr/>").replace("_", "_<wbr/>"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    minutes = seconds / 60
    unit = f"{minutes:.0f}\N{NO-BREAK SPACE}min"
    return unit if minutes < 120 else f"{minutes / 60:.1f}\N{NO-BREAK SPACE}h"
