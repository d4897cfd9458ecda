"""Burned-in marks of the scanner: text, grey bar, depth ticks, calipers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fetal_core.phantom.cohort import PLANES, Row


@dataclass(frozen=True)
class Style:
    """Marks that a sonographer's preset leaves on the screen."""

    preset: str
    caption: str
    calipers: int


_STYLES = (
    Style("2+3.Trim.", "", 0),
    Style("Abdomen", "AC", 2),
    Style("Head", "BPD HC", 2),
    Style("Cx", "Cx", 1),
    Style("Long bones", "FL", 1),
    Style("Cardiac", "", 0),
)


@lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def draw_overlay(
    screen: npt.NDArray[np.uint8],
    row: Row,
    mm_per_px: float,
    rng: np.random.Generator,
    shortcut: float,
) -> None:
    """Burn marks into a screen of shape (height, width), in place.

    The style follows the row's plane with chance ``shortcut``, else any plane's.
    """
    own = rng.random() < shortcut
    chosen = int(rng.integers(len(_STYLES)))
    style = _STYLES[PLANES.index(row.plane) if own and row.plane in PLANES else chosen]
    image = Image.fromarray(screen)
    draw = ImageDraw.Draw(image)
    if row.machine.startswith("Voluson"):
        _draw_voluson(draw, image.size, row.machine, style, rng)
    else:
        _draw_plain(draw, image.size, style, rng)
    _draw_ticks(draw, image.size, mm_per_px)
    if own or rng.random() < 0.25:
        for _ in range(style.calipers):
            _draw_caliper(draw, image.size, rng)
    screen[:] = np.asarray(image)


def _draw_voluson(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    machine: str,
    style: Style,
    rng: np.random.Generator,
) -> None:
    width, height = size
    unit = height / 661.0
    _draw_grey_bar(draw, (0, int(28 * unit), int(11 * unit), int(230 * unit)))
    brand, _, model = machine.partition(" ")
    draw.text((28 * unit, 30 * unit), f"{brand}\n{model}", fill=230, font=_font(int(10 * unit)))
    lines = [
        style.preset,
        f"Har-{('low', 'mid', 'high')[int(rng.integers(3))]}",
        f"{int(rng.integers(80, 100))}",
        f"Gn {int(rng.integers(-12, 6))}",
        f"C{int(rng.integers(4, 8))} / M{int(rng.integers(5, 9))}",
        f"FF{int(rng.integers(1, 4))} / E{int(rng.integers(1, 4))}",
    ]
    _draw_lines(draw, lines, width - 6 * unit, 2 * unit, int(14 * unit))
    if style.caption:
        draw.text(
            (30 * unit, height - 40 * unit), style.caption, fill=220, font=_font(int(15 * unit))
        )


def _draw_plain(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], style: Style, rng: np.random.Generator
) -> None:
    width, height = size
    unit = height / 392.0
    _draw_grey_bar(draw, (0, int(6 * unit), int(18 * unit), int(46 * unit)))
    total = int(rng.integers(8, 400))
    lines = [
        f"{int(rng.integers(1, total))}/{total}",
        f"{int(rng.integers(11, 46))}Hz",
        style.preset,
    ]
    _draw_lines(draw, lines, width - 4 * unit, 4 * unit, int(11 * unit))
    if style.caption:
        draw.text(
            (24 * unit, height - 24 * unit), style.caption, fill=220, font=_font(int(11 * unit))
        )


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: list[str], right: float, top: float, size_px: int
) -> None:
    for index, line in enumerate(lines):
        draw.text(
            (right, top + index * 1.15 * size_px), line, fill=225, font=_font(size_px), anchor="ra"
        )


def _draw_grey_bar(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    for y in range(top, bottom):
        draw.line((left, y, right, y), fill=255 - 255 * (y - top) // max(bottom - top, 1))


def _draw_ticks(draw: ImageDraw.ImageDraw, size: tuple[int, int], mm_per_px: float) -> None:
    step_px, x = 10.0 / mm_per_px, size[0] // 45
    for index in range(int(size[1] / step_px) + 1):
        y = int(index * step_px) + 4
        draw.line((x, y, x + (6 if index % 5 == 0 else 2), y), fill=200)


def _draw_caliper(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: np.random.Generator
) -> None:
    width, height = size
    x0, x1 = rng.uniform(0.25, 0.45) * width, rng.uniform(0.55, 0.75) * width
    y0, y1 = rng.uniform(0.3, 0.7, size=2) * height
    arm = height / 80.0
    for t in np.linspace(0.0, 1.0, 30):
        x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
        draw.point((x, y), fill=220)
    for x, y in ((x0, y0), (x1, y1)):
        draw.line((x - arm, y, x + arm, y), fill=240)
        draw.line((x, y - arm, x, y + arm), fill=240)
