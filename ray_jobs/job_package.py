"""What a job takes along: the files of a checkout that Ray uploads with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

logger = logging.getLogger(__name__)


def uploaded(folder: Path) -> list[Path]:
    """The files of ``folder`` that a job gets, by the rules of Ray's own upload.

    ``.gitignore`` and ``.rayignore`` of every folder leave files out; so does Ray's list of
    environments and caches.
    """
    found: list[Path] = []
    root = folder.absolute()

    def take(path: Path) -> None:
        if path.is_file():
            found.append(path.relative_to(root))

    excludes: list[Callable[[Path], bool]] = [
        packaging._get_excludes(root, ray_constants.get_runtime_env_default_excludes())
    ]
    obeyed = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    packaging._dir_travel(root, excludes, take, include_gitignore=obeyed, logger=logger)
    return sorted(found)
