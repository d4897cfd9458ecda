"""The file system that Ray Train keeps a run in, on a local disk."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow.fs as pafs

from fetal_core import storage
from fetal_core.checkpoint import WAITS_S, patiently


class WholeFiles(pafs.LocalFileSystem):  # type: ignore[misc]
    """Local files of which a reader sees the old or the new content, never a part.

    Ray Train overwrites its list of checkpoints in place: killed there, or on a full disk, it would
    lose all of them.
    """

    waits_s: Sequence[float] = WAITS_S

    def __reduce__(self) -> tuple[type[WholeFiles], tuple[()]]:
        return WholeFiles, ()

    @contextmanager
    def open_output_stream(self, path: str, **options: Any) -> Iterator[io.BytesIO]:
        """What is written into it becomes the file when the block has succeeded.

        Raises:
            CheckpointError: it cannot be written, after several attempts; the old content stays.
        """
        buffer = io.BytesIO()
        yield buffer
        content = buffer.getvalue()
        patiently(lambda: storage.write_bytes(path, content, durable=True), path, self.waits_s)
