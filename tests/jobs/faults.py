"""Ways to spoil a folder of images, and what a command says that must fail."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cohorts import png
from ray_jobs.command import entry

Capture = pytest.CaptureFixture[str]


def refused(main: Callable[..., int | None], words: list[str], capsys: Capture) -> str:
    """What a command says that must fail; it may not print a traceback."""
    try:
        code: int | str | None = entry(main, words)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert isinstance(code, int)
    assert code > 0, said
    assert "Traceback" not in said
    assert said.strip()
    return said


def edit_table(data: Path, change: Callable[[list[list[str]]], None]) -> None:
    lines = (data / "labels.csv").read_text().splitlines()
    rows = [line.split(";") for line in lines]
    change(rows)
    (data / "labels.csv").write_text("\n".join(";".join(row) for row in rows) + "\n")


def one_class(data: Path) -> None:
    def change(rows: list[list[str]]) -> None:
        for row in rows[1:]:
            row[2] = "Fetal brain"

    edit_table(data, change)


def leak_a_patient(data: Path) -> None:
    def change(rows: list[list[str]]) -> None:
        rows[2][1] = rows[1][1]

    edit_table(data, change)


def duplicate_across_patients(data: Path) -> None:
    (data / "images/P04_0.png").write_bytes((data / "images/P02_0.png").read_bytes())


def truncate(data: Path) -> None:
    file = data / "images/P03_0.png"
    file.write_bytes(file.read_bytes()[:300])


def one_pixel(data: Path) -> None:
    (data / "images/P03_0.png").write_bytes(png(7, 1, 1))


def huge_header(data: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (data / "images/P03_0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + size + pixels)


def text_as_image(data: Path) -> None:
    (data / "images/P03_0.png").write_text("this is not an image\n" * 20)


def utf16_table(data: Path) -> None:
    text = (data / "labels.csv").read_text()
    (data / "labels.csv").write_text(text, encoding="utf-16")


def no_table(data: Path) -> None:
    (data / "labels.csv").unlink()


def no_images(data: Path) -> None:
    for file in (data / "images").iterdir():
        file.unlink()


def bad_file_name(data: Path) -> None:
    Path(str(data / "images/P\udcff.png")).write_bytes(png(90))
