"""Charts as inline SVG, coloured by the style sheet of the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fetal_core.markup import Html, escape, join
from fetal_core.metrics import Reliability

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 12, 46
_OVERHANG = 2
_TICKS = 5
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Axis:
    """A range of values with its label and the way its ticks are written."""

    label: str
    low: float
    high: float
    percent: bool = False
    log: bool = False
    whole: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` lies between low (0) and high (1)."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """About five round values inside the range; powers of ten on a logarithmic axis."""
        if self.log:
            exponents = range(
                math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1
            )
            powers = [10.0**exponent for exponent in exponents]
            return powers if len(powers) > 1 else [self.low, self.high]
        step = _round_step((self.high - self.low) / _TICKS)
        step = max(round(step), 1) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def text(self, value: float) -> str:
        """How a tick is written."""
        return f"{100 * value:.3g}%" if self.percent else f"{value:.4g}"

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Series:
    """A line through (x, y) points; ``colour`` is the index of a colour of the style sheet."""

    points: Sequence[tuple[float, float]]
    colour: int = 0
    marked: bool = False


def line_chart(
    alt: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    diagonal: bool = False,
    marks: Sequence[tuple[float, float]] = (),
) -> Html:
    """Lines over common axes, cut at their ends, with an optional diagonal and ringed points."""
    frame = _Frame(x, y)
    lines = [frame.line([(0, 0), (1, 1)], "diagonal")] if diagonal else []
    dots: list[Html] = []
    for line in series:
        lines.append(frame.line(line.points, f"line c{line.colour}"))
        if line.marked:
            dots += [frame.dot(point, 2.5, f"dot c{line.colour}") for point in line.points]
    dots += [frame.dot(point, 6, "ring") for point in marks]
    return frame.svg(alt, [frame.clip(lines), *dots])


def reliability_chart(alt: str, found: Reliability) -> Html:
    """Accuracy in bins of confidence as bars, paler where few images are behind; gaps in red."""
    frame = _Frame(share_axis("Confidence"), share_axis("Accuracy"))
    width = 1 / len(found.count_B)
    most = max(int(found.count_B.max()), 1)
    shapes: list[Html] = []
    for index in np.flatnonzero(found.count_B):
        left = float(index) * width
        accuracy, confidence = float(found.accuracy_B[index]), float(found.confidence_B[index])
        opacity = 0.2 + 0.8 * math.sqrt(found.count_B[index] / most)
        box = (left + 0.1 * width, left + 0.9 * width)
        shapes.append(frame.bar(box, (0, accuracy), "bar", opacity))
        shapes.append(frame.bar(box, (accuracy, confidence), "gap", opacity))
    shapes.append(frame.line([(0, 0), (1, 1)], "diagonal"))
    return frame.svg(alt, shapes)


def share_axis(label: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """An axis of shares, written in percent."""
    return Axis(label, low, high, percent=True)


def span(values: Sequence[float], label: str, **style: bool) -> Axis:
    """An axis that holds all values, from 0 unless it is logarithmic or of whole numbers."""
    low, high = min(values), max(values)
    if not style.get("log") and not style.get("whole"):
        low, high = min(low, 0.0), high * 1.05
    if low == high:
        low, high = (low / 2, high * 2) if style.get("log") else (low - 1, high + 1)
    return Axis(label, low, high, **style)


class _Frame:
    """Turns values into places inside the drawn axes."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        across = _LEFT + self._x.share(point[0]) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - self._y.share(point[1]) * (_HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(down, 1)

    def line(self, points: Sequence[tuple[float, float]], css: str) -> Html:
        path = " ".join(f"{a},{b}" for a, b in map(self.place, points))
        return Html(f'<polyline class="{css}" points="{path}"/>')

    def clip(self, shapes: Sequence[Html]) -> Html:
        x, y = _LEFT - _OVERHANG, _TOP - _OVERHANG
        width = _WIDTH - _LEFT - _RIGHT + 2 * _OVERHANG
        height = _HEIGHT - _TOP - _BOTTOM + 2 * _OVERHANG
        box = f'x="{x}" y="{y}" width="{width}" height="{height}"'
        view = f'viewBox="{x} {y} {width} {height}"'
        return Html(f"<svg {box} {view}>{join(shapes)}</svg>")

    def dot(self, point: tuple[float, float], radius: float, css: str) -> Html:
        across, down = self.place(point)
        return Html(f'<circle class="{css}" cx="{across}" cy="{down}" r="{radius}"/>')

    def bar(
        self, across: tuple[float, float], up: tuple[float, float], css: str, opacity: float
    ) -> Html:
        left, top = self.place((across[0], max(up)))
        right, bottom = self.place((across[1], min(up)))
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
        return Html(
            f'<rect class="{css}" x="{left}" y="{top}" {size} fill-opacity="{opacity:.2f}"/>'
        )

    def svg(self, alt: str, shapes: Sequence[Html]) -> Html:
        return Html(
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(alt)}">'
            f"{join([*self._grid(), *shapes, *self._labels()])}</svg>"
        )

    def _grid(self) -> list[Html]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        shapes = []
        for value in self._x.ticks():
            across, _ = self.place((value, self._y.low))
            shapes.append(_segment(across, _TOP, across, bottom))
            shapes.append(_text(across, bottom + 16, self._x.text(value), "middle"))
        for value in self._y.ticks():
            _, down = self.place((self._x.low, value))
            shapes.append(_segment(_LEFT, down, right, down))
            shapes.append(_text(_LEFT - 7, down + 4, self._y.text(value), "end"))
        return shapes

    def _labels(self) -> list[Html]:
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        turn = f' transform="rotate(-90 14 {middle})"'
        return [
            _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, self._x.label, "middle"),
            _text(14, middle, self._y.label, "middle", turn),
        ]


def _segment(x1: float, y1: float, x2: float, y2: float) -> Html:
    return Html(f'<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')


def _text(x: float, y: float, value: str, anchor: str, extra: str = "") -> Html:
    return Html(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{extra}>{escape(value)}</text>')


def _round_step(rough: float) -> float:
    magnitude: float = 10.0 ** math.floor(math.log10(rough))
    return next(step for step in _STEPS if step * magnitude >= rough * 0.999) * magnitude
