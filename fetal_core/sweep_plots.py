"""Charts of a sweep as inline SVG, coloured by the style sheet of the page that holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fetal_core.importance import default_trial, searched, settings, value_text
from fetal_core.markup import Html, element, escape, figure, join, number, percent
from fetal_core.plots import Axis, Series, line_chart, span
from fetal_core.recipe import Recipe
from fetal_core.search import Parameter, SearchConfig, Value
from fetal_core.trials import Trial, best_trial

_BEST, _STOPPED, _DEFAULT, _OTHER = 1, 6, 2, 7
_SCORES = {"val_macro_f1": "macro F1", "val_accuracy": "accuracy"}

_GAP, _SIDE, _RIGHT = 138, 70, 96
_TOP, _HEIGHT, _FOOT = 48, 360, 30
_FLOOR = _HEIGHT - _FOOT - 26
_PALEST = 15
_LONGEST_TEXT, _LONGEST_NAME = 20, 24
_BAR_WIDTH, _BAR_LEFT, _BAR_RIGHT, _BAR_STEP = 370, 158, 46, 28


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep with the names and colours that the page gives them."""

    trials: Sequence[Trial]
    search: SearchConfig
    recipe: Recipe

    @property
    def best(self) -> Trial | None:
        """The trial that the sweep recommends."""
        return best_trial(self.trials, self.search.metric)

    @property
    def default(self) -> Trial | None:
        """The recipe as it stands."""
        return default_trial(self.trials)

    @property
    def score_name(self) -> str:
        """Such as ``macro F1``."""
        return _SCORES[self.search.metric]

    @property
    def is_share(self) -> bool:
        """Whether the score is a share of images, written in percent."""
        return self.search.metric == "val_accuracy"

    def score(self, trial: Trial) -> float | None:
        """Metric at the best epoch of a trial."""
        return trial.score(self.search.metric)

    def score_text(self, score: float | None) -> str:
        """An accuracy in percent, other metrics with three decimals."""
        return percent(score) if self.is_share else number(score)

    def score_axis(self, label: str, scores: Sequence[float]) -> Axis:
        """An axis over the range of the scores alone, as their differences matter."""
        margin = 0.01 if min(scores) == max(scores) else 0.0
        return Axis(label, min(scores) - margin, max(scores) + margin, percent=self.is_share)

    def remarks(self, trial: Trial) -> str:
        """What is special about a trial; empty for most."""
        special = {"the best": self.best, "the default recipe": self.default}
        return ", ".join(remark for remark, one in special.items() if one is trial)

    def place(self, trial: Trial) -> tuple[bool, int, float, int]:
        """Order of the trials: those that may be the best, by score, then the others."""
        score = self.score(trial)
        group = {"unfinished": 1, "failed": 2}.get(trial.status, 0)
        return score is None, group, -(score or 0.0), trial.number

    def colour(self, trial: Trial) -> int:
        """Index of its colour in the style sheet."""
        if trial is self.best:
            return _BEST
        if trial is self.default:
            return _DEFAULT
        return _STOPPED if trial.status == "stopped" else _OTHER

    def legend(self, colours: Collection[int]) -> list[tuple[int, str]]:
        """Colours and what they stand for."""
        special = [trial for trial in (self.best, self.default) if trial is not None]
        named = {self.colour(one): f"trial {one.number}, {self.remarks(one)}" for one in special}
        named |= {_STOPPED: "stopped early", _OTHER: "other trials"}
        return [(colour, name) for colour, name in named.items() if colour in colours]


@dataclass(frozen=True)
class Coordinate:
    """One upright axis: named values from the bottom to the top, or a range of numbers."""

    label: str
    scale: Axis | tuple[str, ...]

    def share(self, value: Value | None) -> float | None:
        """Where a value lies between bottom (0) and top (1); None for None and 0 on a log axis."""
        if not isinstance(self.scale, Axis):
            texts = len(self.scale)
            return None if value is None else (self.scale.index(value_text(value)) + 0.5) / texts
        if not isinstance(value, int | float) or (self.scale.log and value <= 0):
            return None
        return self.scale.share(value)

    def ticks(self) -> list[tuple[float, str]]:
        """Marked places as shares, and what is written there."""
        if isinstance(self.scale, Axis):
            return [
                (self.scale.share(value), self.scale.text(value)) for value in self.scale.ticks()
            ]
        return [((index + 0.5) / len(self.scale), text) for index, text in enumerate(self.scale)]


@dataclass(frozen=True)
class Path:
    """One trial across the axes.

    Attributes:
        values: one for each axis; None where the trial does not use the parameter.
        strength: of the colour, in [0, 1].
        title: shown under the pointer.
        colour: index of a colour of the style sheet for a line to stand out, or None.
    """

    values: Sequence[Value | None]
    strength: float
    title: str
    colour: int | None = None


def learning_curves(sweep: Sweep) -> Html:
    """The validation metric by epoch; empty where no trial has two epochs."""
    metric, label = sweep.search.metric, f"Validation {sweep.score_name}"
    lines = [
        Series(
            [(float(record["epoch"]), float(record[metric])) for record in trial.history],
            sweep.colour(trial),
        )
        for trial in sweep.trials
        if len(trial.history) > 1
    ]
    if not lines:
        return Html("")
    points = [point for line in lines for point in line.points]
    x = span([epoch for epoch, _ in points], "Epoch", whole=True)
    y = sweep.score_axis(label, [score for _, score in points])
    on_top = (_OTHER, _STOPPED, _DEFAULT, _BEST)
    drawn = sorted(lines, key=lambda line: on_top.index(line.colour))
    chart = line_chart(f"{label} by epoch of {len(lines)} trials", x, y, drawn)
    legend = sweep.legend({line.colour for line in lines})
    caption = f"{label} by epoch, a line for each trial"
    return element("div", figure(chart, caption, legend), css="many")


def setting_lines(sweep: Sweep) -> Html:
    """Parallel coordinates of the trials with a score that did not fail; empty without any."""
    scored = [
        (trial, score, settings(trial, sweep.search, sweep.recipe))
        for trial in sorted(sweep.trials, key=sweep.place, reverse=True)
        if trial.status != "failed" and (score := sweep.score(trial)) is not None
    ]
    if not scored:
        return Html("")
    parameters = searched(sweep.search)
    last = sweep.score_axis(sweep.score_name, [score for _, score, _ in scored])
    axes = [
        coordinate(name, parameter, [used.get(name) for _, _, used in scored])
        for name, parameter in parameters.items()
    ]
    paths = [
        Path(
            [*(used.get(name) for name in parameters), score],
            last.share(score),
            f"trial {trial.number}: {sweep.score_text(score)}",
            colour if (colour := sweep.colour(trial)) in (_BEST, _DEFAULT) else None,
        )
        for trial, score, used in scored
    ]
    chart = parallel_coordinates(
        f"Settings and {sweep.score_name} of {len(paths)} trials",
        [*axes, Coordinate(f"validation.{sweep.score_name}", last)],
        paths,
    )
    caption = "A line for each trial from setting to setting to its score; the stronger, the better"
    legend = sweep.legend([path.colour for path in paths if path.colour is not None])
    return element("div", figure(chart, caption, legend), css="wide")


def parallel_coordinates(alt: str, axes: Sequence[Coordinate], paths: Sequence[Path]) -> Html:
    """Every path over all axes; later ones lie on top. It scrolls sideways on narrow screens."""
    width = _SIDE + _RIGHT + _GAP * (len(axes) - 1)
    unused = {index for path in paths for index, value in enumerate(path.values) if value is None}
    shapes = [
        *(_upright(index, axis, index in unused) for index, axis in enumerate(axes)),
        *(_path(path, axes) for path in paths),
        *(_tick_labels(index, axis) for index, axis in enumerate(axes)),
        *(_text(_across(index), _HEIGHT - 4, "not used", "middle") for index in sorted(unused)),
    ]
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(alt)}">'
        f'<svg viewBox="0 0 {width} {_HEIGHT}" style="min-width:{width}px" role="img" '
        f'aria-label="{escape(alt)}">{join(shapes)}</svg></div>'
    )


def importance_bars(alt: str, shares: Mapping[str, float]) -> Html:
    """A bar for each name, in the given order, of a whole of 1."""
    height = _BAR_STEP * len(shares) + 6
    length = _BAR_WIDTH - _BAR_LEFT - _BAR_RIGHT
    shapes: list[Html] = []
    for index, (name, share) in enumerate(shares.items()):
        top = 6 + index * _BAR_STEP
        for css, width in (("track", length), ("bar", share * length)):
            box = f'x="{_BAR_LEFT}" y="{top}" width="{width:.1f}" height="16"'
            shapes.append(Html(f'<rect class="{css}" {box}/>'))
        shapes.append(_text(_BAR_LEFT - 8, top + 12, _tail(name, _LONGEST_NAME), "end"))
        shapes.append(_text(_BAR_WIDTH - _BAR_RIGHT + 8, top + 12, percent(share, 0), "start"))
    return Html(
        f'<svg viewBox="0 0 {_BAR_WIDTH} {height}" role="img" aria-label="{escape(alt)}">'
        f"{join(shapes)}</svg>"
    )


def coordinate(name: str, parameter: Parameter, seen: Sequence[Value | None]) -> Coordinate:
    """The axis of a parameter: all its values, and those of the trials that lie outside them."""
    given = [value for value in (*parameter.extremes, *seen) if value is not None]
    numbers = [value for value in given if isinstance(value, int | float)]
    if parameter.values is None:
        log, whole = parameter.loguniform is not None, parameter.whole is not None
        drawn = [value for value in numbers if value > 0 or not log]
        return Coordinate(name, Axis(name, min(drawn), max(drawn), log=log, whole=whole))
    ordered = sorted(numbers) if len(numbers) == len(given) else given
    return Coordinate(name, tuple(dict.fromkeys(map(value_text, ordered))))


def _across(index: int) -> int:
    return _SIDE + index * _GAP


def _down(share: float | None) -> float:
    return _HEIGHT - _FOOT if share is None else round(_FLOOR - share * (_FLOOR - _TOP), 1)


def _upright(index: int, axis: Coordinate, unused: bool) -> Html:
    across = _across(index)
    table, _, name = axis.label.rpartition(".")
    shapes = [
        _text(across, 14, table, "middle"),
        _text(across, 30, _tail(name, _LONGEST_TEXT), "middle", "strong"),
        Html(f'<line class="axis" x1="{across}" y1="{_TOP}" x2="{across}" y2="{_FLOOR}"/>'),
    ]
    for down in (_down(share) for share, _ in axis.ticks()):
        ends = f'x1="{across - 4}" y1="{down}" x2="{across}" y2="{down}"'
        shapes.append(Html(f'<line class="axis" {ends}/>'))
    if unused:
        shapes.append(Html(f'<circle class="unused" cx="{across}" cy="{_down(None)}" r="4"/>'))
    return join(shapes)


def _path(path: Path, axes: Sequence[Coordinate]) -> Html:
    points = [
        (_across(index), _down(axis.share(value)))
        for index, (axis, value) in enumerate(zip(axes, path.values, strict=True))
    ]
    line = " ".join(f"{across},{down}" for across, down in points)
    tone = _PALEST + round((100 - _PALEST) * path.strength)
    css = "path" if path.colour is None else f"path own c{path.colour}"
    dots = [
        Html(f'<circle class="dot c{path.colour}" cx="{across}" cy="{down}" r="3.5"/>')
        for across, down in (points if path.colour is not None else ())
    ]
    return Html(
        f"<g><title>{escape(path.title)}</title>"
        f'<polyline class="{css}" style="--tone:{tone}%" points="{line}"/>{join(dots)}</g>'
    )


def _tick_labels(index: int, axis: Coordinate) -> Html:
    return join(
        _text(_across(index) + 7, _down(share) + 4, _tail(text, _LONGEST_TEXT), "start", "over")
        for share, text in axis.ticks()
    )


def _tail(text: str, longest: int) -> str:
    """The end of a text that is too long, which tells names of files and weights apart."""
    return text if len(text) <= longest else f"\N{HORIZONTAL ELLIPSIS}{text[1 - longest :]}"


def _text(x: float, y: float, value: str, anchor: str, css: str = "") -> Html:
    attribute = f' class="{css}"' if css else ""
    return Html(f'<text{attribute} x="{x}" y="{y}" text-anchor="{anchor}">{escape(value)}</text>')
