"""The evaluation of a model as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fetal_core.evaluate import Evaluation, Mistake, Selective
from fetal_core.markup import Html, element, figure, image, number, page, percent, section, table
from fetal_core.plots import Series, line_chart, reliability_chart, share_axis
from fetal_core.report_parts import (
    ReportContext,
    card,
    class_table,
    confusion_table,
    data_section,
    headline_cards,
    interval_note,
    interval_text,
    learning_curves,
    model_section,
    problem_section,
)

_COLOURS = 8
_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
_CORNER = 0.2


def write_report(
    evaluation: Evaluation,
    context: ReportContext,
    thumbnails: Mapping[str, NDArray[np.uint8]],
) -> str:
    """HTML of the report.

    Args:
        evaluation: what is reported.
        context: what surrounds it.
        thumbnails: grey pictures (H, W) by image id, for the mistakes; may lack some.
    """
    cards = [*headline_cards(evaluation.summary, evaluation.bootstrap), _accepted_card(evaluation)]
    blocks = [
        element("p", _in_words(evaluation), css="lead"),
        element("div", *cards, css="cards"),
        interval_note(evaluation.bootstrap),
        problem_section(context.problems),
        _class_section(evaluation),
        _review_section(evaluation),
        _calibration_section(evaluation),
        _roc_section(evaluation),
        _mistake_section(evaluation, thumbnails),
        learning_curves(context.history),
        data_section(context.data),
        model_section(context),
    ]
    return page(context.title, _subtitle(evaluation, context), blocks)


def _subtitle(evaluation: Evaluation, context: ReportContext) -> str:
    patients = f" of {evaluation.patients:,} patients" if evaluation.patients else ""
    model = context.model.get("architecture")
    named = f"{model}, evaluated" if model else "Evaluated"
    return f"{named} on {evaluation.images:,} test images{patients}, none used in training"


def _in_words(evaluation: Evaluation) -> str:
    figures, selective = evaluation.summary, evaluation.selective
    right = int(np.trace(evaluation.confusion_KK))
    text = (
        f"The model named the plane as labelled in {right:,} of {evaluation.images:,} images "
        f"({percent(figures.accuracy)}). "
    )
    if right == evaluation.images:
        text += f"No mistake was seen; {_upper_bound_without_mistakes(evaluation)} "
    if selective.threshold is None or selective.error is None:
        return text + "No answer is accepted without review: every image goes to a person."
    return text + (
        f"Where it answers by itself ({percent(selective.coverage)} of the images) it is wrong in "
        f"{percent(selective.error)}; it hands the other {percent(1 - selective.coverage)} over "
        "for review."
    )


def _upper_bound_without_mistakes(evaluation: Evaluation) -> str:
    result = evaluation.bootstrap
    bound = 1 - (1 - result.level) ** (1 / result.clusters)
    return (
        f"with {result.clusters:,} {result.unit}s, up to {percent(bound)} of {result.unit}s could "
        f"still bring one ({percent(result.level, 0)} bound)."
    )


def _accepted_card(evaluation: Evaluation) -> Html:
    selective = evaluation.selective
    if selective.error is None:
        return card("Needs no review", percent(selective.coverage), "all go to review")
    remark = f"{percent(selective.error)} of them wrong"
    return card("Needs no review", percent(selective.coverage), remark)


def _class_section(evaluation: Evaluation) -> Html:
    classes = evaluation.classes
    return section(
        "Classes",
        class_table(classes, evaluation.summary, evaluation.bootstrap),
        element("h3", "Confusion matrix"),
        confusion_table(
            classes,
            evaluation.confusion_KK,
            "Share of the images of each labelled class (rows) given each prediction (columns), "
            "and number of images. Mistakes are coloured three times as strongly.",
        ),
    )


def _review_section(evaluation: Evaluation) -> Html:
    selective = evaluation.selective
    points = [(coverage, error) for _, coverage, error in selective.curve]
    highest = max(0.01, *(error for _, error in points)) * 1.1
    x, y = share_axis("Share of images accepted"), share_axis("Error among accepted", high=highest)
    mark = [(selective.coverage, selective.error)] if selective.error is not None else []
    alt = (
        f"Error rate among accepted images against their share; "
        f"{percent(points[-1][1])} when all are accepted"
    )
    interval = evaluation.bootstrap.intervals.get("accepted_error")
    caption = (
        f"Error among the most confident images. The ring is the chosen threshold, confidence "
        f"{number(selective.threshold)}: {selective.errors:,} mistakes in "
        f"{selective.accepted:,} accepted images, {percent(selective.error)} "
        f"({interval_text(interval, share=True)})."
        if mark
        else "Error among the most confident images. No threshold accepts any of them."
    )
    chart = figure(line_chart(alt, x, y, [Series(points)], marks=mark), caption)
    choices = element("div", _choices(selective))
    return section("Accept or review", element("div", chart, choices, css="plots"))


def _choices(selective: Selective) -> Html:
    rows = []
    for wanted in _COVERAGES:
        threshold, coverage, error = min(selective.curve, key=lambda row: abs(row[1] - wanted))
        rows.append([percent(coverage, 0), number(threshold), percent(error)])
    return table("Other thresholds", ["Accepted", "Least confidence", "Error among them"], rows)


def _calibration_section(evaluation: Evaluation) -> Html:
    charts = []
    for when, found, figures in (
        ("Before", evaluation.reliability_before, evaluation.before),
        ("After", evaluation.reliability, evaluation.summary),
    ):
        text = (
            f"{when} temperature scaling: expected calibration error {percent(figures.ece)}, "
            f"negative log-likelihood {number(figures.nll)}"
        )
        charts.append(figure(reliability_chart(f"Reliability. {text}", found), f"{text}."))
    return section(
        "Confidence",
        element(
            "p",
            "Bars show how often answers of a given confidence are right; on the dashed line "
            "confidence tells the truth. Red is the gap; pale bars hold few images. "
            f"Temperature {number(evaluation.temperature)}, fitted on the calibration part.",
        ),
        element("div", *charts, css="plots"),
    )


def _roc_section(evaluation: Evaluation) -> Html:
    series, legend = [], []
    for index, (name, curve) in enumerate(zip(evaluation.classes, evaluation.roc, strict=True)):
        if curve is None:
            continue
        colour = index % _COLOURS
        points = list(zip(curve[0].tolist(), curve[1].tolist(), strict=True))
        series.append(Series(points, colour))
        area = evaluation.summary.per_class[index].auroc
        legend.append((colour, f"{name} {number(area)}"))
    if not series:
        return Html("")
    alt = f"ROC curves, one class against the rest. Areas: {', '.join(row[1] for row in legend)}"
    false, true = "False positive rate", "True positive rate"
    whole = line_chart(alt, share_axis(false), share_axis(true), series, diagonal=True)
    corner = line_chart(
        "The upper left corner of the ROC curves",
        share_axis(false, high=_CORNER),
        share_axis(true, low=1 - _CORNER),
        series,
    )
    return section(
        "ROC curves",
        element(
            "div",
            figure(whole, "One class against the rest, with areas.", legend),
            figure(corner, "The upper left corner, five times as large."),
            css="plots",
        ),
    )


def _mistake_section(evaluation: Evaluation, thumbnails: Mapping[str, NDArray[np.uint8]]) -> Html:
    if not evaluation.mistakes:
        return Html("")
    pictures = [_picture(mistake, thumbnails) for mistake in evaluation.mistakes]
    total = evaluation.images - int(np.trace(evaluation.confusion_KK))
    return section(
        "Most confident mistakes",
        element("p", f"{len(pictures)} of {total:,} mistakes; the label may be the one at fault."),
        element("div", *pictures, css="pictures"),
    )


def _picture(mistake: Mistake, thumbnails: Mapping[str, NDArray[np.uint8]]) -> Html:
    pixels_HW = thumbnails.get(mistake.image_id)
    alt = f"{mistake.image_id}: labelled {mistake.label}, predicted {mistake.predicted}"
    shown = (
        image(pixels_HW, alt)
        if pixels_HW is not None
        else element("p", "no picture", css="missing")
    )
    verdict = element("strong", f"{mistake.predicted} ({percent(mistake.confidence)})")
    label = element("small", f"labelled {mistake.label}")
    name = element("small", mistake.image_id)
    return element("figure", shown, element("figcaption", verdict, label, name))
