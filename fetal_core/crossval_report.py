"""A cross-validation as one self-contained HTML page."""

from __future__ import annotations

from fetal_core.crossval import CrossvalResult
from fetal_core.markup import Html, element, number, page, percent, section, table
from fetal_core.report_parts import (
    HEADLINES,
    ReportContext,
    class_table,
    confusion_table,
    data_section,
    headline_cards,
    interval_note,
    interval_text,
    model_section,
    problem_section,
)


def write_crossval_report(result: CrossvalResult, context: ReportContext) -> str:
    """HTML of the report; ``context.history`` is not shown, as every fold has its own."""
    interval = result.bootstrap.intervals.get("accuracy")
    lead = (
        f"On patients that the model had not seen it named the plane as labelled in "
        f"{percent(result.mean.accuracy)} of {result.images:,} images "
        f"({interval_text(interval, share=True)}), on average over {len(result.repeats)} "
        f"repeats of {_fold_count(result)}-fold cross-validation."
    )
    blocks = [
        element("p", lead, css="lead"),
        element("div", *headline_cards(result.mean, result.bootstrap), css="cards"),
        interval_note(result.bootstrap),
        problem_section(context.problems),
        _repeat_section(result),
        section(
            "Classes",
            class_table(result.classes, result.mean, result.bootstrap),
            element("h3", "Confusion matrix"),
            confusion_table(
                result.classes,
                result.confusion_KK,
                "Share of each labelled class (rows) given each prediction (columns), and number "
                "of predictions over all repeats. Mistakes are coloured three times as strongly.",
            ),
        ),
        data_section(context.data),
        model_section(context),
    ]
    patients = f" of {result.patients:,} patients, grouped by patient" if result.patients else ""
    subtitle = f"Cross-validation on {result.images:,} images{patients}"
    return page(context.title, subtitle, blocks)


def _repeat_section(result: CrossvalResult) -> Html:
    rows: list[list[object]] = []
    for repeat, figures in result.repeats.items():
        cells = [_shown(getattr(figures, name), share) for name, _, share in HEADLINES]
        accuracies = [value for (r, _), value in result.folds.items() if r == repeat]
        spread = f"{100 * min(accuracies):.1f} to {percent(max(accuracies))}"
        rows.append([f"Repeat {repeat}", *cells, spread])
    deviations = [_shown(result.spread[name], share) for name, _, share in HEADLINES]
    rows.append(["Standard deviation", *deviations, "-"])
    head = ["", *(label for _, label, _ in HEADLINES), "Accuracy of folds"]
    return section(
        "Repeats",
        table(
            "Each repeat predicts every image once; its folds are pooled, without temperature",
            head,
            rows,
        ),
    )


def _shown(value: float | None, share: bool) -> str:
    return percent(value) if share else number(value)


def _fold_count(result: CrossvalResult) -> int:
    return len({fold for _, fold in result.folds})
