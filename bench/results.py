"""`bench/RESULTS.md`: one section for each measurement, with the machine that it was made on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fetal_core.machine import cores

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
_TITLE = "# Results\n\nEach section is written by the command that it names.\n"
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def write_section(heading: str, body: str, file: Path = RESULTS) -> None:
    """Put a section in the place of the one of this heading, or at the end."""
    text = file.read_text("utf-8") if file.is_file() else _TITLE
    section = f"## {heading}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        text = f"{text.rstrip()}\n\n{section}"
    else:
        rest = text[found.end() :]
        text = text[: found.start()] + section + (f"\n{rest}" if rest else "")
    file.write_text(text, "utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(*packages: str) -> str:
    """The processor, the software and the day, in one paragraph."""
    model, flags = platform.processor(), ""
    if (info := Path("/proc/cpuinfo")).is_file():
        fields = dict(re.findall(r"^(\S[^\t\n]*)\t*: (.*)$", info.read_text("utf-8"), re.MULTILINE))
        model = f"{fields.get('model name', model)}, model {fields.get('model', '?')}"
        there = set(fields.get("flags", "").split())
        flags = f" ({', '.join(flag for flag in _FLAGS if flag in there)})"
    software = [f"Python {platform.python_version()}"]
    software += [f"{name} {_version(name)}" for name in ("torch", "torchvision", "ray", *packages)]
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {model}, {cores()} cores{flags}; {', '.join(software)}; "
        f"load of the machine at the end {load}."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
