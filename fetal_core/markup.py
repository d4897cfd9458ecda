"""Small pieces of HTML; every string is escaped unless it is :class:`Html` already."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_THUMBNAIL_PX = 320
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is markup and must not be escaped again."""

    __slots__ = ()


def escape(value: object) -> Html:
    """``value`` as text, safe inside elements and quoted attributes; :class:`Html` as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(blocks: Iterable[object]) -> Html:
    """Blocks, escaped where needed, one after the other."""
    return Html("\n".join(escape(block) for block in blocks))


def element(name: str, *blocks: object, css: str = "") -> Html:
    """One element with an optional class."""
    attribute = f' class="{escape(css)}"' if css else ""
    return Html(f"<{name}{attribute}>{join(blocks)}</{name}>")


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as ``93.1 %``; a dash for None."""
    return "-" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(caption: str, head: Sequence[object], rows: Sequence[Sequence[object]]) -> Html:
    """A table whose first column names its rows; it scrolls sideways on narrow screens.

    A cell of :class:`Html` is a whole ``td`` element.
    """
    top = join(Html(f'<th scope="col">{escape(cell)}</th>') for cell in head)
    body = join(
        Html(f'<tr><th scope="row">{escape(row[0])}</th>{join(map(_cell, row[1:]))}</tr>')
        for row in rows
    )
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def section(title: str, *blocks: object) -> Html:
    """A titled part of the page; empty blocks vanish."""
    return element("section", element("h2", title), *(block for block in blocks if block))


def details(title: str, *blocks: object) -> Html:
    """A part that opens on demand."""
    return element("details", element("summary", title), *blocks)


def figure(picture: Html, caption: str, legend: Sequence[tuple[int, str]] = ()) -> Html:
    """A picture with its caption and a legend of (colour, label)."""
    keys = [
        Html(f'<li><span class="swatch c{colour}"></span>{escape(label)}</li>')
        for colour, label in legend
    ]
    shown = element("ul", *keys, css="legend") if keys else Html("")
    return element("figure", picture, shown, element("figcaption", caption))


def image(pixels_HW: NDArray[np.uint8], alt: str) -> Html:
    """A grey picture inside the page itself, at most 320 px a side."""
    picture = Image.fromarray(pixels_HW)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return Html(f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">')


def page(title: str, subtitle: str, blocks: Sequence[object]) -> str:
    """A whole self-contained document: no script, no request to anywhere."""
    style = resources.files("fetal_core").joinpath("templates/report.css").read_text("utf-8")
    heading = element("h1", title)
    badge = element("p", "Research use only: not a medical device", css="badge")
    header = element("header", badge, heading, element("p", subtitle, css="subtitle"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{header}\n{element('main', *(block for block in blocks if block))}\n</body>\n</html>\n"
    )


def _cell(value: object) -> Html:
    return value if isinstance(value, Html) else element("td", value)
