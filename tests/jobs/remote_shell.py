"""In the place of ssh and rsync: writes down what would be done on another machine.

``remote_shell.py FOLDER PROGRAM ARGUMENT...``; what Ray generates for the head node is kept.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main(folder: Path, program: str, *arguments: str) -> None:
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps([program, *arguments]) + "\n")
    if program == "rsync" and "ray-bootstrap-" in arguments[-2]:
        shutil.copy(arguments[-2], folder / "head.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
