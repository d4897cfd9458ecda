"""The asyncio pipeline: answers, batches, queue, timeouts and the exchange of models."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from builders import CLASSES, SIZE_PX, toy_bundle
from data_samples import encode, texture
from fetal_core.bundle import Bundle, read_info
from fetal_core.errors import ImageError, ModelError
from fetal_core.images import decode
from fetal_core.predict import Predictor
from fetal_core.preprocess import PreprocessConfig, preprocess
from fetal_core.quality import unusable_reason
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import (
    FileAnswer,
    FileError,
    Inference,
    NotReadyError,
    QueueFullError,
    RequestError,
    ServedModel,
    TooSlowError,
    load_served,
)
from serving_samples import BrokenEngine, ConstantEngine, cine, constant_model, tiff, torch_model

IMAGES = [encode(texture(seed, 60, 90)) for seed in range(6)]


@contextmanager
def running(model: ServedModel | None, **settings: Any) -> Iterator[Inference]:
    inference = Inference(HttpSettings(**settings), model)
    try:
        yield inference
    finally:
        inference.close()


async def until(event: Any) -> None:
    """Wait for a thread's event without holding up the loop."""
    assert await asyncio.to_thread(event.wait, 10)


def assert_as_predicted(answer: FileAnswer, bundle_uri: str, data: bytes) -> None:
    expected = Predictor(Bundle.load(bundle_uri)).predict_bytes(data)
    assert [frame.frame for frame in answer.frames] == [found.frame for found in expected]
    for frame, found in zip(answer.frames, expected, strict=True):
        assert frame.plane == found.plane
        assert frame.decision == found.decision
        assert frame.confidence == pytest.approx(found.confidence, abs=1e-4)
        assert frame.probabilities == pytest.approx(found.probabilities, abs=1e-4)


@pytest.mark.parametrize("data", [IMAGES[0], tiff(3), cine(11)], ids=["png", "tiff", "dicom"])
def test_answers_are_those_of_fetal_predict(tmp_path: Path, data: bytes) -> None:
    model = torch_model(tmp_path)
    with running(model, max_batch=4) as inference:
        answer = asyncio.run(inference.predict(data))
    assert_as_predicted(answer, model.uri, data)
    assert answer.model is model
    assert min(answer.decode_s, answer.engine_s) > 0
    assert answer.queue_s >= 0


def test_real_images_are_answered_as_by_fetal_predict(tmp_path: Path, shared_data: Path) -> None:
    model = torch_model(tmp_path)
    files = sorted((shared_data / "fetal_planes" / "images").glob("*.png"))[:12]
    contents = [file.read_bytes() for file in files]
    with running(model) as inference:
        answers = asyncio.run(inference.predict_files(contents))
    for answer, data in zip(answers, contents, strict=True):
        assert_as_predicted(answer, model.uri, data)
        assert answer.frames[0].decision != "reject"


def test_many_at_a_time_are_each_given_their_own_answer(tmp_path: Path) -> None:
    model = torch_model(tmp_path)

    async def ask(inference: Inference) -> list[FileAnswer]:
        return await asyncio.gather(*(inference.predict(data) for data in IMAGES * 5))

    with running(model) as inference:
        answers = asyncio.run(ask(inference))
        assert inference.pending == 0
    for answer, data in zip(answers, IMAGES * 5, strict=True):
        assert_as_predicted(answer, model.uri, data)


def test_what_waits_is_scored_in_batches_of_at_most_the_limit() -> None:
    engine = ConstantEngine(held=True)

    async def ask(inference: Inference) -> None:
        first = asyncio.create_task(inference.predict(IMAGES[0]))
        await until(engine.started)
        others = [asyncio.create_task(inference.predict(data)) for data in IMAGES * 2]
        while inference.waiting < len(others):
            await asyncio.sleep(0.01)
        engine.go.set()
        await asyncio.gather(first, *others)

    with running(constant_model(engine), max_batch=5) as inference:
        asyncio.run(ask(inference))
    assert engine.batches == [1, 5, 5, 2]


@pytest.mark.parametrize(
    ("threshold", "best", "decision", "reason"),
    [
        (0.5, 8.0, "accept", "reaches the threshold of 0.500"),
        (0.999, 8.0, "review", "is below the threshold of 0.999"),
        (None, 8.0, "review", "no threshold"),
    ],
)
def test_decisions(threshold: float | None, best: float, decision: str, reason: str) -> None:
    with running(constant_model(ConstantEngine(2), threshold=threshold)) as inference:
        frame = asyncio.run(inference.predict(IMAGES[0])).frames[0]
    assert (frame.plane, frame.decision) == (CLASSES[2], decision)
    assert reason in frame.reason
    expected = np.exp(4) / (np.exp(4) + 3)  # temperature 2
    assert frame.confidence == pytest.approx(expected)
    assert f"{expected:.3f}" in frame.reason or threshold is None


def screen_without_echoes() -> np.ndarray:
    """Text and a scale around an empty sector."""
    image_HW = np.zeros((400, 600), np.uint8)
    image_HW[10:30, 20:200:3] = 255
    image_HW[::20, 590:] = 200
    return image_HW


@pytest.mark.parametrize(
    ("image_HW", "reason"),
    [
        (np.full((40, 60), 7, np.uint8), "every pixel has the grey value 7"),
        (screen_without_echoes(), "the middle of the image is empty"),
    ],
)
def test_images_that_show_nothing_are_rejected(image_HW: np.ndarray, reason: str) -> None:
    with running(constant_model(ConstantEngine())) as inference:
        frame = asyncio.run(inference.predict(encode(image_HW))).frames[0]
    assert frame.decision == "reject"
    assert frame.reason.startswith(reason)
    assert sum(frame.probabilities.values()) == pytest.approx(1)


def test_clinical_images_show_something(shared_data: Path) -> None:
    files = sorted((shared_data / "fetal_planes" / "images").glob("*.png"))
    assert files
    assert [f for f in files if unusable_reason(decode(f.read_bytes()))] == []


def test_only_a_file_that_is_alone_is_scored_where_it_is_decoded() -> None:
    engine = ConstantEngine()
    with running(constant_model(engine)) as inference:
        asyncio.run(inference.predict(IMAGES[0]))
        assert engine.threads == ["decode"]
        engine.threads.clear()
        asyncio.run(inference.predict_files(IMAGES[:3]))
        assert set(engine.threads) == {"engine"}
        assert sum(engine.batches) == 4


def test_one_bad_file_fails_all_and_is_named() -> None:
    with running(constant_model(ConstantEngine())) as inference:
        with pytest.raises(FileError) as failure:
            asyncio.run(inference.predict_files([IMAGES[0], IMAGES[1][:100], IMAGES[2]]))
        assert inference.pending == 0
    assert failure.value.index == 1
    assert failure.value.cause.kind == "truncated-image"


def test_a_frame_that_cannot_be_read_fails_its_file() -> None:
    data = cine(9)
    with running(constant_model(ConstantEngine()), max_batch=2) as inference:
        with pytest.raises(ImageError):
            asyncio.run(inference.predict(data[: len(data) // 2]))
        assert inference.pending == 0


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    engine = ConstantEngine(held=True)

    async def ask(inference: Inference) -> None:
        tasks = [asyncio.create_task(inference.predict(IMAGES[0])) for _ in range(3)]
        await until(engine.started)
        with pytest.raises(QueueFullError) as refusal:
            await inference.predict(IMAGES[0])
        assert 1 <= refusal.value.retry_after_s <= 60
        with pytest.raises(QueueFullError):
            await inference.predict_files(IMAGES[:2])
        engine.go.set()
        await asyncio.gather(*tasks)
        await inference.predict(IMAGES[0])

    with running(constant_model(engine), queue_size=3, max_files=3) as inference:
        asyncio.run(ask(inference))


def test_what_takes_too_long_is_given_up_and_never_scored() -> None:
    engine = ConstantEngine(held=True)

    async def ask(inference: Inference) -> None:
        running = asyncio.create_task(inference.predict(IMAGES[0]))
        await until(engine.started)
        with pytest.raises(TooSlowError):
            await inference.predict(IMAGES[1])
        with pytest.raises(TooSlowError):
            await running
        assert inference.pending == 0
        engine.go.set()
        await inference.predict(IMAGES[2])

    with running(constant_model(engine), timeout_s=0.3) as inference:
        asyncio.run(ask(inference))
    assert engine.batches == [1, 1]


def test_cancelled_work_is_dropped_from_the_queue() -> None:
    engine = ConstantEngine(held=True)

    async def ask(inference: Inference) -> None:
        first = asyncio.create_task(inference.predict(IMAGES[0]))
        await until(engine.started)
        second = asyncio.create_task(inference.predict(IMAGES[1]))
        while not inference.waiting:
            await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        engine.go.set()
        await first

    with running(constant_model(engine)) as inference:
        asyncio.run(ask(inference))
    assert engine.batches == [1]


def test_a_file_that_is_cancelled_before_its_decoding_is_let_go() -> None:
    begun, go = threading.Event(), threading.Event()
    model = constant_model(ConstantEngine())
    ready_HW = np.zeros((SIZE_PX, SIZE_PX), np.uint8)

    class File:
        def decode(self) -> np.ndarray:
            begun.set()
            assert go.wait(10)
            return ready_HW

    async def give_up(inference: Inference) -> weakref.ref[File]:
        file = File()
        asking = asyncio.create_task(inference.file_logits([file.decode], model))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait({asking})
        return weakref.ref(file)

    async def ask(inference: Inference) -> None:
        first = asyncio.create_task(inference.file_logits([File().decode], model))
        await until(begun)
        gone = [await give_up(inference) for _ in range(3)]
        assert inference.pending == 1
        gc.collect()
        assert [file() for file in gone] == [None] * 3
        go.set()
        await first

    with running(model, decode_threads=1) as inference:
        asyncio.run(ask(inference))


def test_swap_under_load_fails_nothing_and_mixes_nothing() -> None:
    models = [constant_model(ConstantEngine(best), str(best)) for best in (0, 1, 2)]

    async def client(inference: Inference, answers: list[FileAnswer]) -> None:
        for _ in range(20):
            answers += await inference.predict_files([IMAGES[0], tiff(3)])

    async def ask(inference: Inference) -> list[FileAnswer]:
        answers: list[FileAnswer] = []
        clients = [asyncio.create_task(client(inference, answers)) for _ in range(8)]
        for turn in range(30):
            await asyncio.sleep(0.005)
            inference.swap(models[turn % 3])
        await asyncio.gather(*clients)
        return answers

    with running(models[0], max_batch=3) as inference:
        answers = asyncio.run(ask(inference))
    assert len(answers) == 8 * 20 * 2
    assert len({answer.model.version for answer in answers}) > 1
    for answer in answers:
        assert {frame.plane for frame in answer.frames} == {CLASSES[int(answer.model.version)]}


def test_an_engine_that_fails_fails_its_batch_only() -> None:
    with running(constant_model(BrokenEngine())) as inference:
        with pytest.raises(RuntimeError):
            asyncio.run(inference.predict(IMAGES[0]))
        inference.swap(constant_model(ConstantEngine()))
        assert asyncio.run(inference.predict(IMAGES[0])).frames[0].plane == CLASSES[0]


@pytest.mark.parametrize(
    ("engine", "changes", "outcome"),
    [
        (ConstantEngine(1), {}, "agrees"),
        (ConstantEngine(2), {}, "differs"),
        (ConstantEngine(1), {"classes": CLASSES[::-1]}, "differs"),
        (BrokenEngine(), {}, "failed"),
        (ConstantEngine(1), {"preprocess": PreprocessConfig(size_px=64)}, "skipped"),
    ],
)
def test_a_shadow_is_compared_and_answers_nobody(
    engine: ConstantEngine, changes: dict[str, Any], outcome: str
) -> None:
    async def ask(inference: Inference) -> FileAnswer:
        inference.set_shadow(constant_model(engine, "shadow", **changes))
        answer = await inference.predict(tiff(3))
        while "fetal_shadow_frames_total{" not in inference.metrics.text().decode():
            await asyncio.sleep(0.01)
        inference.set_shadow(None)
        await inference.predict(tiff(3))
        return answer

    with running(constant_model(ConstantEngine(1), "1")) as inference:
        answer = asyncio.run(ask(inference))
        text = inference.metrics.text().decode()
    assert answer.model.version == "1"
    assert f'fetal_shadow_frames_total{{outcome="{outcome}"}} 3.0' in text


def test_without_a_model_nothing_is_answered() -> None:
    with running(None) as inference:
        assert not inference.ready
        with pytest.raises(NotReadyError):
            asyncio.run(inference.predict(IMAGES[0]))
        inference.swap(constant_model(ConstantEngine()))
        assert inference.ready
        assert asyncio.run(inference.predict(IMAGES[0])).frames


def test_decoded_frames_and_ready_tensors_are_scored_as_files_are(tmp_path: Path) -> None:
    model = torch_model(tmp_path)
    images = [decode(data) for data in IMAGES]
    ready_NHW = np.stack([preprocess(image_HW, model.info.preprocess) for image_HW in images])
    with running(model, max_batch=4) as inference:
        frame = asyncio.run(inference.predict_frame(images[0]))
        logits_NK = asyncio.run(inference.logits(ready_NHW))
        expected = asyncio.run(inference.predict(IMAGES[0])).frames[0]
        for bad in (ready_NHW.astype(np.float32), ready_NHW[:, 1:], ready_NHW[0]):
            with pytest.raises(ImageError, match=rf"\[N, {SIZE_PX}, {SIZE_PX}\]"):
                asyncio.run(inference.logits(bad))
    assert frame.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    reference_NK = Predictor(Bundle.load(model.uri)).logits(ready_NHW)
    np.testing.assert_allclose(logits_NK, reference_NK, atol=1e-4)


def test_explanations_are_images_of_the_original_size(tmp_path: Path) -> None:
    with running(torch_model(tmp_path)) as inference:
        heat = [asyncio.run(inference.explain(cine(3), plane, 2)) for plane in (None, *CLASSES)]
        for plane, frame in (("nose", 0), (None, 3), (None, -1)):
            with pytest.raises(RequestError):
                asyncio.run(inference.explain(cine(3), plane, frame))
        with pytest.raises(ImageError):
            asyncio.run(inference.explain(b"no image"))
    assert {decode(png).shape for png in heat} == {texture(0).shape}
    assert len(set(heat[1:])) > 1


def test_loading_warms_up_and_refuses_a_model_without_finite_scores(tmp_path: Path) -> None:
    uri = str(tmp_path)
    torch_model(tmp_path)
    served = load_served(uri, "toy", "7", engine="torch")
    assert (served.name, served.version, served.info) == ("toy", "7", read_info(uri))
    broken = toy_bundle()
    broken.model.head.bias.data.fill_(float("nan"))
    broken.save(uri)
    with pytest.raises(ModelError, match="finite"):
        load_served(uri, "toy", "8", engine="torch")


def test_answers_are_counted() -> None:
    model = constant_model(ConstantEngine(1))
    with running(model) as inference:
        asyncio.run(inference.predict(tiff(3)))
        inference.swap(replace(model, version="2"))
        text = inference.metrics.text().decode()
    assert f'fetal_decisions_total{{decision="accept",plane="{CLASSES[1]}"}} 3.0' in text
    assert "fetal_batch_images_sum 3.0" in text
    assert 'fetal_model_info{name="toy",version="2"} 1.0' in text
    assert 'version="1"' not in text
    assert "fetal_queue_files 0.0" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"require_key": True},
        {"max_files": 65, "queue_size": 64},
        {"max_body_bytes": 10, "max_buffered_bytes": 9},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpSettings(**wrong)
