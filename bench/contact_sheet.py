"""Draw real images beside synthetic ones, one row for each plane, as docs/contact_sheet.png.

Usage: python bench/contact_sheet.py DATA [OUT] where DATA holds labels.csv and images/ of
FETAL_PLANES_DB (Burgos-Artizzu et al., Zenodo, doi:10.5281/zenodo.3904280, CC BY 4.0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fetal_core.phantom import PLANES, PhantomConfig, Row, make_cohort, render
from fetal_core.phantom.table import read_table

COLUMNS = 4
TILE_PX = (150, 104)
GAP_PX = 3
LABEL_PX = 18
SEED = 21
CREDIT = (
    "Real images: FETAL_PLANES_DB, Burgos-Artizzu et al., doi:10.5281/zenodo.3904280, CC BY 4.0"
)


def spread(rows: list[Row]) -> list[Row]:
    """Return rows spread over the list, so that they come from several patients."""
    picks = np.unique(np.linspace(0, len(rows) - 1, COLUMNS).round().astype(int))
    return [rows[index] for index in picks]


def tile(image: Image.Image) -> Image.Image:
    grey = image.convert("L")
    grey.thumbnail(TILE_PX, Image.Resampling.LANCZOS)
    canvas = Image.new("L", TILE_PX)
    canvas.paste(grey, ((TILE_PX[0] - grey.width) // 2, (TILE_PX[1] - grey.height) // 2))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with labels.csv and images/")
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/contact_sheet.png"))
    arguments = parser.parse_args()
    images = arguments.data / "images"
    real = [
        row
        for row in read_table(arguments.data / "labels.csv")
        if (images / f"{row.image_name}.png").exists()
    ]
    synthetic = make_cohort(PhantomConfig(images=600, patients=120, seed=SEED))
    step_x, step_y = TILE_PX[0] + GAP_PX, TILE_PX[1] + GAP_PX + LABEL_PX
    half = COLUMNS * step_x + 4 * GAP_PX
    size = (2 * half - 5 * GAP_PX, LABEL_PX + len(PLANES) * step_y + LABEL_PX)
    sheet = Image.new("L", size, 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((2, 2), "real", fill=0, font=font)
    draw.text((half, 2), "synthetic", fill=0, font=font)
    for line, plane in enumerate(PLANES):
        top = LABEL_PX + line * step_y
        draw.text((2, top + 2), plane, fill=0, font=font)
        for column, row in enumerate(spread([row for row in real if row.plane == plane])):
            with Image.open(images / f"{row.image_name}.png") as image:
                sheet.paste(tile(image), (column * step_x, top + LABEL_PX))
        for column, row in enumerate(spread([row for row in synthetic if row.plane == plane])):
            picture = tile(Image.fromarray(render(row, SEED)))
            sheet.paste(picture, (half + column * step_x, top + LABEL_PX))
    draw.text((2, size[1] - LABEL_PX + 2), CREDIT, fill=0, font=font)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(40).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
