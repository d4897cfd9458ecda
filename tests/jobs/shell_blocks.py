"""Commands of a document: what its fenced `sh` blocks say, and a folder in which to run them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ELSEWHERE = frozenset({"aws", "cluster", "kubernetes", "network"})
"""Marks after `sh` of blocks that need what is not here."""

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_COMMENT = re.compile(r"(^|\s)#.*$")
_TIMEOUT_S = 240


@dataclass(frozen=True)
class Block:
    """A fenced block of shell commands.

    Attributes:
        line: of the document, at which it begins.
        marks: words after `sh`.
        text: without indentation.
    """

    line: int
    marks: frozenset[str]
    text: str

    @property
    def commands(self) -> list[str]:
        """One for each line or, where it goes on or a quotation is open, several; no comments."""
        found, begun = [], ""
        for line in self.text.replace("\\\n", " ").splitlines():
            begun = " ".join([begun, _COMMENT.sub("", line)]).strip()
            try:
                shlex.split(begun)
            except ValueError:
                continue
            if begun:
                found.append(re.sub(r"\s+", " ", begun))
            begun = ""
        return found


def blocks(document: Path) -> list[Block]:
    """All `sh` blocks, in order."""
    text, found = document.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        kind, *marks = match["info"].split() or [""]
        if kind in ("sh", "bash", "shell", "console"):
            line = text.count("\n", 0, match.start()) + 1
            body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
            found.append(Block(line, frozenset(marks), body))
    return found


def fetal_words(command: str) -> Iterator[list[str]]:
    """The words after each `fetal` of a command line, up to what ends the command."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] | None = None
    for word in lexer:
        if Path(word).name == "fetal":
            words = []
        elif words is not None and not re.fullmatch(r"[();<>|&\n]+", word):
            words.append(word)
        elif words is not None:
            yield words
            words = None
    if words is not None:
        yield words


class Workplace:
    """A folder with the project's programs on the path, in which a document's commands run."""

    def __init__(self, folder: Path, root: Path, ports: Mapping[str, int]) -> None:
        self.folder, self.ports = folder, ports
        self._log = folder.parent / "output.log"
        scripts = Path(sys.executable).parent
        (folder / ".venv").mkdir()
        (folder / ".venv/bin").symlink_to(scripts)
        path = os.pathsep.join([str(scripts), os.environ["PATH"]])
        self._environment = os.environ | {"PATH": path, "PYTHONPATH": str(root)}
        self._environment.pop("RAY_ADDRESS", None)
        self._sessions: list[subprocess.Popen[bytes]] = []

    def run(self, script: str) -> str:
        """What a script writes.

        Raises:
            AssertionError: it fails.
        """
        process = self._start(script)
        code = process.wait(_TIMEOUT_S)
        output = self._log.read_text(errors="replace")
        assert code == 0, f"{script}\nended by {code}:\n{output}"
        return output

    def serve(self, command: str) -> str:
        """Start an endpoint; the command by which it says that it can be tried."""
        process = self._start(f"{command} --port {self.ports['8000']}")
        while True:
            output = self._log.read_text(errors="replace")
            if hint := re.search(r"^curl .*$", output, re.MULTILINE):
                return hint.group()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                raise AssertionError(f"{command}\n{output}")

    def stop(self, kill: Callable[[subprocess.Popen[bytes]], None]) -> None:
        """End all that was started here."""
        for process in self._sessions:
            kill(process)
        self._sessions.clear()

    def _start(self, script: str) -> subprocess.Popen[bytes]:
        for written, port in self.ports.items():
            script = re.sub(rf"\b{written}\b", str(port), script)
        with self._log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.append(process)
        return process
