"""What a check of machines has found: a line for each, as a table or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from ray_jobs.console import console, say

Severity = Literal["ok", "warn", "fail"]

_STYLES: dict[Severity, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what, in kebab-case, such as ``free-disk``.
        node: name of the machine; ``cluster`` for what concerns all of them.
        severity: ``fail`` stops runs or makes them wrong, ``warn`` may do so later.
        seen: what was found.
        remedy: how to mend it; empty where nothing is to be mended.
    """

    check: str
    node: str
    severity: Severity
    seen: str
    remedy: str = ""


def count(findings: Sequence[Finding]) -> dict[Severity, int]:
    """How many findings of each severity there are."""
    found = Counter(finding.severity for finding in findings)
    return {severity: found[severity] for severity in _STYLES}


def as_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings and their counts, for JSON."""
    return {"counts": count(findings), "findings": [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """A table of what was seen, then what is to be mended."""
    table = Table("", "node", "check", "seen", box=None, pad_edge=False)
    for found in findings:
        mark = Text(found.severity, _STYLES[found.severity])
        table.add_row(mark, Text(found.node), Text(found.check), Text(found.seen))
    console.print(table)
    for severity in ("fail", "warn"):
        for found in findings:
            if found.severity == severity:
                say(f"{severity}: {found.node}: {found.check}: {found.remedy}")
    counts = count(findings)
    say(", ".join(f"{number} {severity}" for severity, number in counts.items()))
