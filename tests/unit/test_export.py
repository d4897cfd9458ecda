"""An export is kept if it answers as the bundle does, with true figures, else not at all."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from builders import (
    SIZE_PX,
    shard_table,
    toy_bundle,
    toy_images,
    toy_store,
    write_prepared,
)
from fetal_core import storage
from fetal_core.agreement import compare, measure_speeds
from fetal_core.bundle import Bundle, read_info
from fetal_core.engine import TorchEngine, open_engine
from fetal_core.errors import ConfigError, DataError, StaleInputError, StorageError
from fetal_core.export import ExportConfig, ExportError, export
from fetal_core.predict import Predictor
from fetal_core.quantise import METHODS, calibration_images, convert, quantise
from fetal_core.rows import RowStore
from fetal_core.steps import resolve_precision
from ray_jobs.export import export_bundle
from ray_jobs.workspace import Run

# Not `importorskip`: importing them here would let them report their use.
pytestmark = pytest.mark.needs(find_spec("nncf"), "needs the extra `export`")

# In float32 on every processor, so that what is asked of the answers is the same everywhere.
QUICK = ExportConfig(timing_s=0.01, calibration_images=16, threads=1, precision="fp32")
TRAIN, VAL = toy_store(24, seed=1), toy_store(40, seed=2)


def save(folder: Path, **changes: Any) -> str:
    uri = str(folder / "bundle")
    toy_bundle(metrics={"validation": {"accuracy": 0.5}}, **changes).save(uri)
    return uri


def save_undecided(folder: Path) -> str:
    """A bundle whose classes are so close that rounding decides between them."""
    bundle = toy_bundle()
    weight_KF = bundle.model.head.weight.data
    bundle.model.head.weight.data = weight_KF.mean(0, keepdim=True) + 1e-4 * weight_KF
    bundle.model.head.bias.data.zero_()
    offset_K = Predictor(bundle).logits(images(VAL)).astype(np.float64)
    bundle.model.head.bias.data -= bundle.model.head.bias.new_tensor(np.median(offset_K, axis=0))
    uri = str(folder / "bundle")
    bundle.save(uri)
    return uri


def images(store: RowStore) -> np.ndarray:
    return store.images(range(len(store))).squeeze(1).numpy()


def files_of(uri: str) -> dict[str, bytes]:
    return {file: Path(file).read_bytes() for file in storage.list_files(uri)}


def test_figures_are_those_of_the_engine_that_was_written(tmp_path: Path) -> None:
    uri = save(tmp_path)
    config = QUICK.model_copy(update={"min_agreement": 0.0, "max_accuracy_loss": 1.0})
    steps: dict[str, tuple[int, int]] = {}
    result = export(uri, "openvino-int8", TRAIN, VAL, config, lambda s, *n: steps.update({s: n}))
    expected_NK = Predictor(Bundle.load(uri)).logits(images(VAL))
    found_NK = open_engine(uri, "openvino-int8", threads=1).logits(images(VAL))
    labels_N = VAL.labels_N.numpy()
    difference_NK = np.abs(softmax(expected_NK / 2, axis=1) - softmax(found_NK / 2, axis=1))
    found = result.agreement
    assert found.images == 40
    assert found.agreement == np.mean(expected_NK.argmax(1) == found_NK.argmax(1))
    assert found.accuracy == np.mean(found_NK.argmax(1) == labels_N)
    assert found.accuracy_fp32 == np.mean(expected_NK.argmax(1) == labels_N)
    assert found.probability_difference_max == pytest.approx(difference_NK.max(), abs=1e-4)
    assert found.probability_difference_mean == pytest.approx(difference_NK.mean(), abs=1e-5)
    assert found.probability_difference_max > 0
    assert result.method == "symmetric"
    assert steps["calibrating symmetric"] == (16, 16)
    assert steps["validating symmetric"] == (40, 40)


def test_bundle_keeps_its_weights_and_gains_the_figures(tmp_path: Path) -> None:
    uri = save(tmp_path)
    before = read_info(uri)
    for engine in ("torch", "openvino"):
        result = export(uri, engine, TRAIN, VAL, QUICK)  # type: ignore[arg-type]
        assert result.agreement.agreement == 1
        assert result.agreement.probability_difference_max < 1e-4
    after = Bundle.load(uri).info
    assert after.model_copy(update={"metrics": before.metrics}) == before
    assert after.metrics["validation"] == {"accuracy": 0.5}
    assert set(after.metrics["engines"]) == {"torch", "openvino"}
    for engine, figures in after.metrics["engines"].items():
        written = json.loads(Path(uri, "engines", engine, "engine.json").read_text())
        assert written["figures"] == figures
        assert written["weights"] == before.hashes["weights"]
        assert figures["images"] == 40
        assert figures["latency_ms"] > 0
        assert figures["fp32"]["images_per_s"] > 0
    assert [path.name for path in Path(uri, "engines", "torch").iterdir()] == ["engine.json"]


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_precision_on_record_is_the_one_that_was_computed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: bool
) -> None:
    if not bfloat16:
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    elif resolve_precision("auto", torch.device("cpu")) == "fp32":
        pytest.skip("this processor does not compute in bfloat16")
    uri = save(tmp_path)
    asked = QUICK.model_copy(update={"precision": "bf16", "min_agreement": 0.5})
    differences = {}
    for engine in ("openvino", "torch"):
        result = export(uri, engine, TRAIN, VAL, asked)  # type: ignore[arg-type]
        written = json.loads(Path(uri, "engines", engine, "engine.json").read_text())
        rounded = result.agreement.probability_difference_max > 1e-5
        differences[engine] = written["precision"], rounded
    found = ("bf16", True) if bfloat16 else ("fp32", False)
    assert differences == {"openvino": found, "torch": ("bf16", True)}


def test_an_engine_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    uri = save_undecided(tmp_path)
    export(uri, "openvino", TRAIN, VAL, QUICK.model_copy(update={"min_agreement": 0.5}))
    before = files_of(uri)
    with pytest.raises(ExportError) as caught:
        export(uri, "openvino-int8", TRAIN, VAL, QUICK)
    assert files_of(uri) == before
    message = str(caught.value)
    assert all(f"  - {method.name}: agreement " in message for method in METHODS)
    assert "Nothing was written" in message
    with pytest.raises(ConfigError, match="has not been exported"):
        open_engine(uri, "openvino-int8")


def test_lost_accuracy_alone_is_reason_to_refuse(tmp_path: Path) -> None:
    uri = save_undecided(tmp_path)
    answers_N = Predictor(Bundle.load(uri)).logits(images(VAL)).argmax(axis=1)
    right = RowStore([shard_table(VAL.image_ids, answers_N, images(VAL))], SIZE_PX)
    with pytest.raises(ExportError, match=r"instead of 100\.00%"):
        export(uri, "openvino-int8", TRAIN, right, QUICK.model_copy(update={"min_agreement": 0.0}))


def test_an_interrupted_write_leaves_no_engine(tmp_path: Path) -> None:
    uri = save(tmp_path)
    export(uri, "openvino", TRAIN, VAL, QUICK)
    graph = Path(uri, "engines", "openvino", "model.xml")
    graph.unlink()
    graph.mkdir()
    with pytest.raises(StorageError):
        export(uri, "openvino", TRAIN, VAL, QUICK)
    with pytest.raises(ConfigError, match="has not been exported"):
        open_engine(uri, "openvino")
    assert open_engine(uri).name == "torch"


def test_export_on_s3(bucket: str) -> None:
    uri = f"{bucket}/export/bundle"
    toy_bundle().save(uri)
    result = export(uri, "openvino", TRAIN, VAL, QUICK)
    assert result.uri == f"{uri}/engines/openvino"
    expected_NK = Predictor(Bundle.load(uri)).logits(images(VAL))
    found_NK = open_engine(uri, threads=1).logits(images(VAL))
    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-4)
    assert read_info(uri).metrics["engines"]["openvino"]["agreement"] == 1


def test_empty_parts_are_named_together(tmp_path: Path) -> None:
    uri = save(tmp_path)
    with pytest.raises(DataError) as caught:
        export(uri, "openvino-int8", toy_store(0), toy_store(0), QUICK)
    assert [problem.where for problem in caught.value.problems] == ["train", "val"]


def test_float_ends_leave_two_layers_out_of_the_quantisation() -> None:
    bundle = toy_bundle()
    graph = convert(bundle)
    quantised: dict[str, int] = {}
    for method in METHODS:
        found = quantise(graph, images(TRAIN), "squeezenet1_1", method, lambda done, total: None)
        kinds = [op.get_type_name() for op in found.get_ordered_ops()]
        quantised[method.name] = kinds.count("FakeQuantize")
    assert quantised["symmetric"] == quantised["asymmetric"]
    assert 0 < quantised["asymmetric with float ends"] <= quantised["asymmetric"] - 2
    assert "FakeQuantize" not in [op.get_type_name() for op in graph.get_ordered_ops()]


def test_comparison_of_known_answers() -> None:
    reference_NK = np.log(np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]], np.float32))
    found_NK = np.log(np.array([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], np.float32))
    labels_N = np.array([0, 0, 1, 0])
    store = RowStore([shard_table(["i0", "i1", "i2", "i3"], labels_N, toy_images(labels_N, 0))], 32)
    found = compare(reference_NK, found_NK, store, temperature=1.0)
    assert (found.agreement, found.accuracy, found.accuracy_fp32) == (0.75, 0.5, 0.75)
    assert found.probability_difference_max == pytest.approx(0.2, abs=1e-6)
    assert found.probability_difference_mean == pytest.approx(0.6 / 8, abs=1e-6)
    assert str(found) == (
        "agreement 75.00%, accuracy 50.00% instead of 75.00%, on 4 validation images"
    )


def test_speeds_are_positive_and_of_each_engine() -> None:
    engine = TorchEngine(toy_bundle(), "fp32")
    speeds = measure_speeds([engine, engine], timing_s=0.01)
    assert len(speeds) == 2
    assert all(speed.latency_ms > 0 and speed.images_per_s > 0 for speed in speeds)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=4, max_size=4).filter(any),
    wanted=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)
def test_calibration_images_are_even_over_the_classes(
    counts: list[int], wanted: int, seed: int
) -> None:
    labels_N = np.repeat(np.arange(4), counts)
    images_NHW = np.zeros((len(labels_N), 2, 2), np.uint8)
    images_NHW[:, 0, 0], images_NHW[:, 0, 1] = np.arange(len(labels_N)), labels_N
    ids = [f"i{row:03d}" for row in range(len(labels_N))]
    store = RowStore([shard_table(ids, labels_N, images_NHW)], 2)
    drawn_NHW = calibration_images(store, wanted, seed)
    assert len(np.unique(drawn_NHW[:, 0, 0])) == len(drawn_NHW) == min(wanted, len(labels_N))
    taken = np.bincount(drawn_NHW[:, 0, 1], minlength=4)
    unexhausted = [n for n, count in zip(taken, counts, strict=True) if n < count]
    assert max(taken) - min(unexhausted, default=max(taken)) <= 1
    np.testing.assert_array_equal(drawn_NHW, calibration_images(store, wanted, seed))


def test_the_cohort_is_the_one_that_the_run_names(tmp_path: Path) -> None:
    prepared, recipe = write_prepared(tmp_path)
    _, _, index = prepared.load()
    run = Run(str(tmp_path / "run"))
    run.begin(prepared, recipe, index.fingerprint)
    toy_bundle(classes=index.classes, hashes={"shards": index.fingerprint}).save(run.bundle_uri)
    result = export_bundle(f"{run.bundle_uri}/", "torch", config=QUICK)
    assert result.agreement.images == index.rows("val")
    assert read_info(run.bundle_uri).metrics["engines"]["torch"]["agreement"] == 1


def test_another_cohort_or_none_is_refused(tmp_path: Path) -> None:
    prepared, _ = write_prepared(tmp_path)
    uri = save(tmp_path / "alone", hashes={"shards": "of another cohort"})
    with pytest.raises(ConfigError, match="--prepared"):
        export_bundle(uri, "torch", config=QUICK)
    with pytest.raises(StaleInputError, match="other shards"):
        export_bundle(uri, "torch", prepared.uri, QUICK)
    assert not storage.exists(storage.join(uri, "engines"))
