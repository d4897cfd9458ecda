"""The reports: self-contained, escaped, accessible, and true to the figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fetal_core.crossval import crossval_summary
from fetal_core.crossval_report import write_crossval_report
from fetal_core.evaluate import EvaluateConfig, Evaluation, evaluate
from fetal_core.markup import escape, percent
from fetal_core.metrics import Predictions
from fetal_core.plots import Axis, Series, line_chart, share_axis, span
from fetal_core.report import write_report
from fetal_core.report_parts import DataSummary, ReportContext
from prediction_samples import CLASSES, sample_predictions

CONFIG = EvaluateConfig(resamples=100, worst=4)
EVIL = "\"'><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>&"
VOID = {"meta", "img", "br", "polyline", "circle", "rect", "line"}


class Page(HTMLParser):
    """Tags with attributes and the visible text; checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def context(**changes: object) -> ReportContext:
    plain = ReportContext(
        title="Planes by resnet50",
        data=DataSummary(
            manifest_sha256="ab" * 32,
            split_sha256="cd" * 32,
            images={"train": dict.fromkeys(CLASSES, 1300), "test": dict.fromkeys(CLASSES, 133)},
            patients={"train": 140, "test": 60},
        ),
        model={"architecture": "resnet50"},
        config={"train": {"epochs": 3}},
        history=[
            {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "lr": 0.01}
            for epoch in (1, 2, 3)
        ],
        problems=["a.png: truncated [truncated-image]. Export it again."],
        versions={"torch": "2.14.1"},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def thumbnails(evaluation: Evaluation) -> Mapping[str, np.ndarray]:
    ramp_HW = np.tile(np.arange(200, dtype=np.uint8), (600, 3))
    return {mistake.image_id: ramp_HW for mistake in evaluation.mistakes[:3]}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(sample_predictions(), 1.4, 0.8, CONFIG)


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> Page:
    return Page(write_report(evaluation, context(), thumbnails(evaluation)))


def test_report_asks_nothing_of_the_network_and_runs_nothing(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form", "a"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all("url(" not in (value or "") for value in attributes.values())
        assert "href" not in attributes
    for picture in page.all("img"):
        assert picture["src"].startswith("data:image/png;base64,")
    policies = [tag["content"] for tag in page.all("meta") if "http-equiv" in tag]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_report_shows_the_figures(page: Page, evaluation: Evaluation) -> None:
    assert "Research use only" in page.text
    shown = " ".join(percent(evaluation.summary.accuracy).split())
    low, high = evaluation.bootstrap.intervals["accuracy"]
    assert f"Accuracy {shown} {100 * low:.1f} to {100 * high:.1f} %" in page.text
    for value in ("ab" * 32, "cd" * 32, "1,300", "2.14.1", '"epochs": 3', "truncated-image"):
        assert value in page.text
    for mistake in evaluation.mistakes:
        assert mistake.image_id in page.text
    for row in evaluation.confusion_KK:
        for count in row:
            assert str(count) in page.words


def test_report_is_accessible(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    drawings = [tag for tag in page.all("svg") if "role" in tag]
    assert len(drawings) == 7
    assert all(tag["role"] == "img" and tag["aria-label"] for tag in drawings)
    assert all(tag["alt"] for tag in page.all("img"))
    assert all(tag["scope"] in ("row", "col") for tag in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_pictures_are_small_and_missing_ones_are_said_to_be(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 3
    assert "no picture" in page.text
    data = base64.b64decode(pictures[0]["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.mode, picture.size) == ("L", (320, 320))


def test_no_string_becomes_markup() -> None:
    classes = (EVIL, "b", "c")
    part = sample_predictions(classes=classes)
    part = replace(part, image_ids=tuple(f"{row}{EVIL}" for row in range(len(part))))
    found = evaluate(part, 1.0, 0.6, CONFIG)
    data = DataSummary(EVIL, EVIL, {EVIL: {EVIL: 1}}, {EVIL: 1})
    text = write_report(
        found,
        context(
            title=EVIL,
            data=data,
            problems=[EVIL],
            model={EVIL: EVIL, "architecture": EVIL},
            versions={EVIL: EVIL},
            config={EVIL: EVIL},
        ),
        thumbnails(found),
    )
    page = Page(text)
    assert not page.all("script")
    assert all((tag["src"] or "").startswith("data:") for tag in page.all("img"))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert(1)</script>") > 10


def test_review_of_everything_and_a_part_without_mistakes_are_put_into_words() -> None:
    part = sample_predictions(rows=60, patients=20, quality=50.0)
    found = evaluate(part, 1.0, None, CONFIG)
    page = Page(write_report(found, context(history=(), problems=()), {}))
    bound = percent(1 - 0.05 ** (1 / found.bootstrap.clusters)).replace("\N{NO-BREAK SPACE}", " ")
    assert f"No mistake was seen; with {found.bootstrap.clusters} patients, up to {bound}" in (
        page.text
    )
    assert "every image goes to a person" in page.text
    assert "Training" not in page.text
    assert "Findings" not in page.text


def test_absent_class_unknown_patients_and_gaps_in_the_history() -> None:
    part = sample_predictions(rows=90, classes=(*CLASSES, "Rare"))
    kept = np.flatnonzero(part.labels_N != 3)
    part = Predictions(
        tuple(part.image_ids[row] for row in kept),
        (None,) * len(kept),
        part.labels_N[kept],
        part.logits_NK[kept],
        part.classes,
    )
    history = [
        {"epoch": 1, "train_loss": float("nan"), "val_loss": None, "lr": 0.0},
        {"epoch": 2, "train_loss": 0.5, "val_accuracy": 0.5},
    ]
    page = Page(write_report(evaluate(part, 1.0, 0.5, CONFIG), context(history=history), {}))
    assert "intervals are too narrow" in page.text
    assert not any("nan" in (tag.get("points") or "") for tag in page.all("polyline"))


def test_crossval_report_shows_repeats_and_their_mean() -> None:
    whole = sample_predictions(rows=120, patients=24)
    folds = {}
    for repeat in range(2):
        for fold in range(2):
            rows = [row for row in range(120) if int(whole.patients[row][1:]) % 2 == fold]
            folds[repeat, fold] = Predictions(
                tuple(whole.image_ids[row] for row in rows),
                tuple(whole.patients[row] for row in rows),
                whole.labels_N[rows],
                whole.logits_NK[rows],
                whole.classes,
            )
    result = crossval_summary(folds, CONFIG)
    page = Page(write_crossval_report(result, context()))
    shown = percent(result.mean.accuracy).replace("\N{NO-BREAK SPACE}", " ")
    assert f"in {shown} of 120 images" in page.text
    assert "over 2 repeats of 2-fold cross-validation" in page.text
    assert "Repeat 1" in page.text
    assert "grouped by patient" in page.text
    assert not page.all("script")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_few_and_inside_the_axis(low: float, length: float, whole: bool) -> None:
    axis = Axis("x", low, low + length, whole=whole)
    ticks = axis.ticks()
    assert len(ticks) <= 8
    slack = 1e-6 * max(1.0, abs(low), length)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)
    if whole:
        assert all(float(tick).is_integer() for tick in ticks)


@given(st.lists(st.floats(1e-8, 1e3), min_size=1, max_size=20), st.booleans())
def test_axis_spans_its_values(values: list[float], log: bool) -> None:
    axis = span(values, "y", log=log)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    assert axis.ticks()


def test_points_land_where_the_axes_say() -> None:
    line = Series([(0.0, 0.5), (1.0, 1.0), (0.5, 0.75)])
    drawing = Page(line_chart("a line", share_axis("x"), share_axis("y", low=0.5), [line]))
    assert drawing.all("polyline")[0]["points"] == "58.0,254.0 396.0,12.0 227.0,133.0"


@given(st.text())
def test_escaped_text_reads_as_it_was(text: str) -> None:
    safe = escape(text)
    assert not set("<>\"'") & set(safe)
    assert escape(safe) == safe
