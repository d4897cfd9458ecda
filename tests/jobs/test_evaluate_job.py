"""From a trained run to metrics, a report and predictions that agree with one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from fetal_core.bundle import Bundle
from fetal_core.errors import ModelError, StaleInputError
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.evaluate import EvaluateOutcome, evaluate_run, predict_parts
from ray_jobs.predict import predict_files
from ray_jobs.prepare import PrepareOutcome
from ray_jobs.train import TrainOutcome
from ray_jobs.workspace import Prepared

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def evaluated(trained: TrainOutcome) -> EvaluateOutcome:
    return evaluate_run(trained.run.uri, ClusterConfig())


def test_metrics_bundle_and_report_agree(
    evaluated: EvaluateOutcome, prepared: PrepareOutcome
) -> None:
    metrics = json.loads(Path(evaluated.run.metrics_uri).read_text())
    info = Bundle.load(evaluated.run.bundle_uri).info
    report = Path(evaluated.run.report_uri).read_text()
    assert metrics["images"] == prepared.index.rows("test")
    assert info.metrics["test"]["accuracy"] == metrics["accuracy"]
    assert info.temperature == metrics["calibration_part"]["value"] == evaluated.temperature.value
    assert info.threshold == evaluated.threshold.value
    assert metrics["hashes"]["shards"] == prepared.index.fingerprint
    assert f'<p class="value">{100 * metrics["accuracy"]:.1f}\xa0%</p>' in report
    assert prepared.index.manifest_hash[:12] in report
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_no_patient_of_the_test_part_was_trained_on(prepared: PrepareOutcome) -> None:
    manifest, split, _ = prepared.prepared.load()
    patient_of = dict(zip(manifest.ids, manifest.patients, strict=True))
    patients = {part: {patient_of[i] for i in ids} for part, ids in split.parts.items()}
    assert patients["test"]
    assert not patients["test"] & (patients["train"] | patients["val"] | patients["calib"])
    official = dict(zip(manifest.ids, manifest.table["official_test"].to_pylist(), strict=True))
    assert set(split.parts["test"]) == {image for image, test in official.items() if test}


def test_accuracy_is_that_of_the_scores(
    evaluated: EvaluateOutcome, prepared: PrepareOutcome
) -> None:
    scores = predict_parts(
        evaluated.run.bundle_uri, prepared.prepared, prepared.index, ("test",), ClusterConfig()
    )["test"]
    metrics = json.loads(Path(evaluated.run.metrics_uri).read_text())
    hits = scores.logits_NK.argmax(1) == scores.labels_N
    assert metrics["accuracy"] == pytest.approx(hits.mean())
    table = prepared.prepared.load()[0].where(scores.image_ids)
    assert scores.labels_N.tolist() == table["label"].to_pylist()
    assert list(scores.patients) == table["patient"].to_pylist()


def test_a_file_gets_the_probabilities_of_its_shard_row(
    evaluated: EvaluateOutcome, prepared: PrepareOutcome, cohort: Path
) -> None:
    scores = predict_parts(
        evaluated.run.bundle_uri, prepared.prepared, prepared.index, ("test",), ClusterConfig()
    )["test"]
    files = [str(cohort / "images" / f"{image_id}.png") for image_id in scores.image_ids]
    found, problems = predict_files(evaluated.run.bundle_uri, files)
    assert not problems
    expected_NK = softmax(scores.logits_NK / evaluated.temperature.value, axis=1)
    got_NK = np.array([list(prediction.probabilities.values()) for _, prediction in found])
    np.testing.assert_allclose(got_NK, expected_NK, atol=1e-4)
    assert [list(prediction.probabilities) for _, prediction in found] == [
        list(scores.classes)
    ] * len(files)


def test_another_cohort_in_the_same_place_is_refused(
    trained: TrainOutcome, prepared: PrepareOutcome, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run.uri, tmp_path / "run"))
    described = json.loads((run / "bundle/model.json").read_text())
    described["hashes"]["shards"] = "0" * 64
    (run / "bundle/model.json").write_text(json.dumps(described))
    (run / "metrics.json").unlink(missing_ok=True)
    with pytest.raises(StaleInputError, match="other shards"):
        evaluate_run(str(run), ClusterConfig())
    assert not (run / "metrics.json").exists()


def test_a_damaged_bundle_is_one_error(trained: TrainOutcome, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run.uri, tmp_path / "run"))
    weights = run / "bundle/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        evaluate_run(str(run), ClusterConfig())


def test_shards_of_another_split_are_refused(prepared: PrepareOutcome, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(prepared.prepared.uri, tmp_path / "prepared"))
    index = json.loads((copied / "shards/index.json").read_text())
    (copied / "shards/index.json").write_text(json.dumps(index | {"fingerprint": "0" * 64}))
    with pytest.raises(StaleInputError, match="another manifest or split"):
        Prepared(str(copied)).load()
