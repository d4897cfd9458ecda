"""From the bytes of image files to answers, in one asyncio process, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fetal_core.errors import ImageError
from fetal_core.images import decode_frames
from fetal_core.machine import cores
from ray_jobs.admission import Admission
from ray_jobs.batching import Batcher, Scored
from ray_jobs.decoding import Chunk, overlay, prepare
from ray_jobs.http_settings import HttpSettings
from ray_jobs.served import Decision, FrameAnswer, ServedModel, answer_frames, load_served
from ray_jobs.serving_errors import (
    FileError,
    NotReadyError,
    QueueFullError,
    RequestError,
    TooSlowError,
)
from ray_jobs.serving_metrics import ServingMetrics
from ray_jobs.shadow import Shadow
from ray_jobs.workers import Workers

__all__ = [
    "Decision",
    "FileAnswer",
    "FileError",
    "FrameAnswer",
    "Inference",
    "NotReadyError",
    "QueueFullError",
    "RequestError",
    "ServedModel",
    "TooSlowError",
    "load_served",
]

Grey = NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class FileAnswer:
    """The answers for all frames of a file, all by one model, and the time they took."""

    model: ServedModel
    frames: tuple[FrameAnswer, ...]
    decode_s: float
    queue_s: float
    engine_s: float


class Inference:
    """Decoding threads, a bounded queue and engine threads around the served model.

    Its coroutines belong to one event loop; :meth:`swap` may be called from any thread.
    """

    def __init__(self, settings: HttpSettings, model: ServedModel | None = None) -> None:
        self.settings = settings
        self.queue = Admission(settings.queue_size)
        self.metrics = ServingMetrics(lambda: self.pending)
        self._model: ServedModel | None = None
        self._decoders = Workers(settings.decode_threads, "decode")
        self._explainer = Workers(1, "explain")
        self._batcher = Batcher(
            settings.max_batch,
            settings.batch_wait_ms / 1000,
            cores(),
            expects_more=lambda: self.pending > 1,
            on_batch=self.metrics.batch.observe,
        )
        self._shadow = Shadow(self._batcher, self.metrics)
        if model is not None:
            self.swap(model)

    @property
    def model(self) -> ServedModel:
        """The model that answers now.

        Raises:
            NotReadyError: there is none.
        """
        if self._model is None:
            raise NotReadyError("No model is loaded yet. Try again in a moment.")
        return self._model

    @property
    def ready(self) -> bool:
        """Whether there is a model."""
        return self._model is not None

    @property
    def alive(self) -> bool:
        """Whether the engine's threads run; without them, nothing is answered."""
        return self._batcher.alive

    @property
    def pending(self) -> int:
        """Files that are admitted and not answered yet."""
        return self.queue.pending

    @property
    def waiting(self) -> int:
        """Decoded chunks of files that the engine has not begun, about."""
        return self._batcher.waiting

    def swap(self, model: ServedModel) -> None:
        """Answer by ``model`` from now on; what is under way ends with the model it began with."""
        self._model = model
        self.metrics.serve(model.name, model.version)

    def set_shadow(self, model: ServedModel | None) -> None:
        """Give ``model`` a copy of the frames from now on, and count where it disagrees."""
        self._shadow.model = model

    def close(self) -> None:
        """Drop what waits for decoding, finish the rest and end all threads."""
        self._decoders.close()
        self._explainer.close()
        self._batcher.close()

    def check_queue(self, files: int = 1) -> None:
        """Whether ``files`` more would be admitted now.

        Raises:
            QueueFullError: they would not.
        """
        self.queue.check(files)

    async def predict(self, data: bytes) -> FileAnswer:
        """Answer for all frames of one file.

        Raises:
            ImageError: not an image that this project reads, or beyond the limits.
            NotReadyError: no model is loaded.
            QueueFullError: too many files are waiting.
            TooSlowError: the answer is not there within ``timeout_s``.
        """
        model = self.model
        with self.queue.admitted(1):
            return await self.in_time(self._file(data, model))

    async def predict_files(self, files: Sequence[bytes]) -> list[FileAnswer]:
        """Answer for several files by one model, all or none.

        Raises:
            FileError: one of them is no image; otherwise as for :meth:`predict`.
        """
        model = self.model
        with self.queue.admitted(len(files)):
            return await self.in_time(self._files(files, model))

    async def predict_frame(self, image_HW: Grey) -> FrameAnswer:
        """Answer for one decoded grey image of any size; raises as :meth:`predict` does."""
        model = self.model
        with self.queue.admitted(1):
            chunks = prepare(iter([image_HW]), model, 1)
            answer = await self.in_time(self._answer(chunks, model))
            return answer.frames[0]

    async def logits(
        self, images_NHW: Grey, model: ServedModel | None = None
    ) -> NDArray[np.float32]:
        """Scores of shape (N, K) of images preprocessed for ``model``, by default the served one.

        Raises:
            ImageError: of kind ``wrong-shape``; otherwise as for :meth:`predict`.
        """
        model = model or self.model
        size_px = model.info.preprocess.size_px
        if images_NHW.dtype != np.uint8 or images_NHW.shape[1:] != (size_px, size_px):
            raise ImageError(
                "wrong-shape",
                f"the tensor is {images_NHW.dtype} {list(images_NHW.shape)}",
                f"Send uint8 of shape [N, {size_px}, {size_px}]",
            )
        with self.queue.admitted(1):
            return await self.in_time(self._logits(images_NHW, model))

    async def file_logits(
        self, decode: Sequence[Callable[[], Grey]], model: ServedModel
    ) -> NDArray[np.float32]:
        """Scores of shape (N, K) of N files, admitted together before the first is decoded.

        Args:
            decode: gives for each file its image, preprocessed for ``model``; what it raises is
                raised. Runs in a decoding thread, and not at all once the call is cancelled.
            model: scores them.

        Raises:
            QueueFullError: too many files are waiting.
            TooSlowError: the scores are not there within ``timeout_s``.
        """

        async def score() -> NDArray[np.float32]:
            images = [await self._decoders.run(each) for each in decode]
            return await self._logits(np.stack(images), model)

        with self.queue.admitted(len(decode)):
            return await self.in_time(score())

    async def explain(self, data: bytes, plane: str | None = None, frame: int = 0) -> bytes:
        """A frame under the heat map of a class (the most probable one if None), as PNG.

        Raises:
            RequestError: no such class or frame, or the model cannot be explained.
            NotReadyError: also where its files have changed; otherwise as for :meth:`predict`.
        """
        model = self.model
        if plane is not None and plane not in model.info.classes:
            raise RequestError(
                f"There is no class {plane!r}. The classes are: {', '.join(model.info.classes)}."
            )
        index = None if plane is None else model.info.classes.index(plane)
        work = partial(overlay, data, self.settings.limits, model, index, frame)
        with self.queue.admitted(1):
            return await self.in_time(self._explainer.run(work))

    async def read(self, parse: Callable[[], T]) -> T:
        """The result of ``parse``, which reads a request in a decoding thread.

        Until then it counts as one file, and not beside those it names; raises QueueFullError.
        """
        with self.queue.admitted(1, answered=0):
            return await self._decoders.run(parse)

    async def in_time(self, work: Awaitable[T]) -> T:
        """The result of ``work``; raises TooSlowError after ``timeout_s``."""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await work
        except TimeoutError:
            raise TooSlowError(
                f"There was no answer within {self.settings.timeout_s:g} s. Try again later, or "
                "send fewer frames."
            ) from None

    async def _files(self, files: Sequence[bytes], model: ServedModel) -> list[FileAnswer]:
        decoding = asyncio.Semaphore(self.settings.decode_threads + 1)

        async def answer(index: int, data: bytes) -> FileAnswer:
            async with decoding:
                try:
                    return await self._file(data, model)
                except ImageError as error:
                    raise FileError(index, error) from None

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(*item)) for item in enumerate(files)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _file(self, data: bytes, model: ServedModel) -> FileAnswer:
        images = decode_frames(data, self.settings.limits)
        return await self._answer(prepare(images, model, self.settings.max_batch), model)

    async def _answer(self, chunks: Iterator[Chunk], model: ServedModel) -> FileAnswer:
        """Decode a chunk while the engine works on the one before it.

        The only chunk of a request that is alone is scored by the thread that has decoded it.
        """
        frames: list[FrameAnswer] = []
        decode_s = queue_s = engine_s = 0.0
        following = partial(next, chunks)

        def first() -> tuple[Chunk, Scored | None]:
            chunk = next(chunks)
            alone = self._batcher.score_alone(model.engines, chunk.images) if chunk.last else None
            return chunk, alone

        chunk: Chunk | None
        chunk, scored = await self._decoders.run(first)
        while chunk is not None:
            after = None
            if scored is None:
                scoring = self._batcher.submit(model.engines, chunk.images)
                try:
                    after = None if chunk.last else await self._decoders.run(following)
                    scored = await scoring
                finally:
                    scoring.cancel()
            self._shadow.copy(chunk.images, model, scored.logits_NK)
            decode_s += chunk.decode_s
            queue_s += scored.queue_s
            engine_s += scored.engine_s
            frames += answer_frames(model.info, scored.logits_NK, chunk.rejections, len(frames))
            chunk, scored = after, None
        for answer in frames:
            self.metrics.decisions.labels(answer.plane, answer.decision).inc()
        return FileAnswer(model, tuple(frames), decode_s, queue_s, engine_s)

    async def _logits(self, images_NHW: Grey, model: ServedModel) -> NDArray[np.float32]:
        step = self.settings.max_batch
        parts = []
        for start in range(0, len(images_NHW), step):
            scored = await self._batcher.submit(
                model.engines, list(images_NHW[start : start + step])
            )
            parts.append(scored.logits_NK)
        return np.concatenate(parts)
