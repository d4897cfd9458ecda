"""Parts that the reports have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fetal_core.bootstrap import Bootstrap, Interval
from fetal_core.markup import (
    Html,
    details,
    element,
    escape,
    figure,
    join,
    number,
    percent,
    section,
    table,
)
from fetal_core.metrics import IntArray, Summary
from fetal_core.plots import Series, line_chart, span

# (field of Summary and of the intervals, name on the page, whether it is a share of images)
HEADLINES = (
    ("accuracy", "Accuracy", True),
    ("balanced_accuracy", "Balanced accuracy", True),
    ("macro_f1", "Macro F1", False),
    ("auroc_macro", "AUROC, macro", False),
    ("ece", "Calibration error", True),
)
_RATES = (("precision", True), ("recall", True), ("f1", False), ("auroc", False))
_STRONG_TONE = 70
_MISTAKE_TONE = 3


@dataclass(frozen=True)
class DataSummary:
    """The data behind a report.

    Attributes:
        manifest_sha256: hash of the manifest.
        split_sha256: hash of the split.
        images: images by part and class.
        patients: patients by part; empty where unknown.
    """

    manifest_sha256: str
    split_sha256: str
    images: Mapping[str, Mapping[str, int]]
    patients: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContext:
    """What a report says besides the evaluation.

    Attributes:
        title: heading of the page.
        data: the data and their hashes.
        model: facts by name, such as architecture, parameters, epochs and wall time.
        config: the whole configuration of the run.
        history: one mapping an epoch: ``epoch`` and any of ``train_loss``, ``val_loss``,
            ``val_accuracy``, ``lr``.
        problems: findings of the data audit.
        versions: of the software, by name.
    """

    title: str
    data: DataSummary
    model: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float | None]] = ()
    problems: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def interval_text(interval: Interval | None, share: bool) -> str:
    """``83.2 to 85.5 %``, ``0.912 to 0.934``, or a remark that there is none."""
    if interval is None:
        return "no interval"
    low, high = interval
    return f"{100 * low:.1f} to {percent(high)}" if share else f"{low:.3f} to {high:.3f}"


def card(name: str, value: str, remark: str) -> Html:
    """One headline number."""
    return element(
        "div",
        element("p", name, css="name"),
        element("p", value, css="value"),
        element("p", remark, css="interval"),
        css="card",
    )


def headline_cards(figures: Summary, result: Bootstrap) -> list[Html]:
    """The overall figures with their intervals."""
    cards = []
    for name, label, share in HEADLINES:
        value = getattr(figures, name)
        remark = interval_text(result.intervals.get(name), share)
        cards.append(card(label, percent(value) if share else number(value), remark))
    return cards


def interval_note(result: Bootstrap) -> Html:
    """How the intervals came about."""
    missing = (
        ""
        if result.unit == "patient"
        else " Patients are not known for all images: if several images show the same patient, "
        "these intervals are too narrow."
    )
    return element(
        "p",
        f"The ranges are {percent(result.level, 0)} intervals (percentile bootstrap, "
        f"{result.resamples:,} draws of {result.clusters:,} "
        f"{result.unit}s with all their images). They tell how much the figures would vary with "
        f"other {result.unit}s, not with another training run.{missing}",
        css="note",
    )


def class_table(classes: Sequence[str], figures: Summary, result: Bootstrap) -> Html:
    """One row a class: rates, intervals and number of images."""
    rows = []
    for index, (name, row) in enumerate(zip(classes, figures.per_class, strict=True)):
        cells: list[object] = [name]
        for rate, share in _RATES:
            value = getattr(row, rate)
            found = result.intervals.get(f"{rate}/{index}")
            shown = percent(value) if share else number(value)
            small = element("small", interval_text(found, share)) if found else Html("")
            cells.append(element("td", shown, small))
        rows.append([*cells, f"{row.support:,}"])
    head = ["Class", "Precision", "Recall", "F1", "AUROC", "Images"]
    return table("Each class against the rest, with intervals", head, rows)


def confusion_table(classes: Sequence[str], confusion_KK: IntArray, caption: str) -> Html:
    """Shares of each row as coloured cells, with the counts."""
    rows: list[list[object]] = []
    for label, name in enumerate(classes):
        total = int(confusion_KK[label].sum())
        cells: list[object] = [name]
        for predicted in range(len(classes)):
            count = int(confusion_KK[label, predicted])
            cells.append(_share_cell(count, total, right=label == predicted))
        rows.append([*cells, f"{total:,}"])
    return table(caption, ["Label / prediction", *classes, "All"], rows)


def _share_cell(count: int, total: int, right: bool) -> Html:
    share = count / total if total else 0.0
    tone = min(100, round(100 * share * (1 if right else _MISTAKE_TONE)))
    css = ["share", "right" if right else "wrong"]
    if tone > _STRONG_TONE:
        css.append("strong")
    if count == 0:
        css.append("zero")
    return Html(
        f'<td class="{" ".join(css)}" style="--tone:{tone}%">'
        f"{percent(share)}<small>{count:,}</small></td>"
    )


def learning_curves(history: Sequence[Mapping[str, float | None]]) -> Html:
    """Loss, validation accuracy and learning rate by epoch; nothing without a history."""
    charts = [
        _curve(history, "Loss", [("train_loss", "training"), ("val_loss", "validation")]),
        _curve(history, "Validation accuracy", [("val_accuracy", "validation")], percent=True),
        _curve(history, "Learning rate", [("lr", "learning rate")], log=True),
    ]
    shown = [chart for chart in charts if chart]
    return section("Training", element("div", *shown, css="plots")) if shown else Html("")


def _curve(
    history: Sequence[Mapping[str, float | None]],
    label: str,
    columns: Sequence[tuple[str, str]],
    **style: bool,
) -> Html:
    lines: list[Series] = []
    legend: list[tuple[int, str]] = []
    for colour, (column, name) in enumerate(columns):
        points = [
            (float(epoch), float(value))
            for row in history
            if (epoch := row.get("epoch")) is not None
            and (value := row.get(column)) is not None
            and math.isfinite(value)
            and (value > 0 or not style.get("log"))
        ]
        if points:
            lines.append(Series(points, colour, marked=len(points) <= 30))
            legend.append((colour, name))
    if not lines:
        return Html("")
    x = span([point[0] for line in lines for point in line.points], "Epoch", whole=True)
    y = span([point[1] for line in lines for point in line.points], label, **style)
    last = ", ".join(
        f"{name} {line.points[-1][1]:.4g}" for line, (_, name) in zip(lines, legend, strict=True)
    )
    alt = f"{label} over {len(history)} epochs; at the end: {last}"
    return figure(line_chart(alt, x, y, lines), label, legend if len(legend) > 1 else ())


def problem_section(problems: Sequence[str]) -> Html:
    """Findings of the audit; nothing if there are none."""
    if not problems:
        return Html("")
    items = element("ul", *(element("li", problem) for problem in problems))
    block = section(f"Findings about the data ({len(problems)})", items)
    return Html(block.replace("<section>", '<section class="warnings">', 1))


def data_section(data: DataSummary) -> Html:
    """Images by part and class, patients and hashes."""
    classes = list(dict.fromkeys(name for counts in data.images.values() for name in counts))
    rows = [
        [
            part,
            *(f"{counts.get(name, 0):,}" for name in classes),
            f"{sum(counts.values()):,}",
            f"{data.patients[part]:,}" if part in data.patients else "-",
        ]
        for part, counts in data.images.items()
    ]
    hashes = {"Manifest SHA-256": data.manifest_sha256, "Split SHA-256": data.split_sha256}
    return section(
        "Data",
        table("Images by part and class", ["Part", *classes, "Images", "Patients"], rows),
        facts({name: element("code", value) for name, value in hashes.items()}),
    )


def facts(values: Mapping[str, object]) -> Html:
    """Names and values."""
    pairs = join(
        Html(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>") for name, value in values.items()
    )
    return Html(f"<dl>{pairs}</dl>") if values else Html("")


def model_section(context: ReportContext) -> Html:
    """Model, configuration and software versions."""
    text = json.dumps(context.config, indent=2, ensure_ascii=False, default=str)
    return section(
        "Model and software",
        facts(context.model),
        details("Configuration", element("pre", text)) if context.config else Html(""),
        details("Versions", facts(context.versions)) if context.versions else Html(""),
    )
