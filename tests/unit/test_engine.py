"""Engines give torch's answers, from any thread, and refuse what does not belong to the bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from builders import CLASSES, SIZE_PX, toy_bundle, toy_store
from fetal_core import storage
from fetal_core.bundle import Bundle
from fetal_core.engine import TorchEngine, open_engine, openvino
from fetal_core.errors import ConfigError, ModelError, StaleInputError
from fetal_core.export import ExportConfig, export
from fetal_core.steps import resolve_precision

# Not `importorskip`: importing them here would let them report their use.
pytestmark = pytest.mark.needs(find_spec("openvino"), "needs the extra `export`")

# In float32 on every processor, so that what is asked of the answers is the same everywhere.
QUICK = ExportConfig(timing_s=0.01, calibration_images=16, threads=1, precision="fp32")
IMAGES_NHW = toy_store(17, seed=3).images(range(17)).squeeze(1).numpy()


def plain_logits(bundle: Bundle, images_NHW: np.ndarray) -> np.ndarray:
    """Logits before the loss's link, written out without the code under test."""
    grey = torch.tensor(images_NHW, dtype=torch.float32)[:, None] / 255
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (bundle.info.mean, bundle.info.std))
    rgb = ((grey - mean) / std).expand(-1, 3, -1, -1)
    model = bundle.model
    with torch.inference_mode():
        logits_NK: torch.Tensor = model.backbone(rgb) @ model.head.weight.T + model.head.bias
    return logits_NK.double().numpy()


def exported(folder: Path, engine: Any = "openvino", **changes: Any) -> str:
    uri = str(folder / "bundle")
    toy_bundle(**changes).save(uri)
    export(uri, engine, toy_store(24, seed=1), toy_store(8, seed=2), QUICK)
    return uri


@pytest.fixture(scope="module")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy bundle with the engine ``openvino``; tests leave it as it is."""
    return exported(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def changed_uri(bundle_uri: str, tmp_path: Path) -> str:
    """A copy of the bundle to change."""
    for uri in storage.list_files(bundle_uri):
        storage.upload(Path(uri), str(tmp_path / Path(uri).relative_to(bundle_uri)))
    return str(tmp_path)


def test_torch_engine_computes_the_network_in_float32(bundle_uri: str) -> None:
    bundle = Bundle.load(bundle_uri)
    found_NK = TorchEngine(bundle, "fp32").logits(IMAGES_NHW)
    assert found_NK.dtype == np.float32
    np.testing.assert_allclose(found_NK, plain_logits(bundle, IMAGES_NHW), atol=1e-4)


def test_torch_engine_in_bfloat16_is_close_but_not_the_same(bundle_uri: str) -> None:
    bundle = Bundle.load(bundle_uri)
    exact_NK = TorchEngine(bundle, "fp32").logits(IMAGES_NHW)
    found_NK = TorchEngine(bundle, "bf16").logits(IMAGES_NHW)
    assert found_NK.dtype == np.float32
    assert 0 < np.abs(found_NK - exact_NK).max() < 0.05 * np.abs(exact_NK).max()


def test_openvino_computes_the_network_of_normalised_channels(tmp_path: Path) -> None:
    classes = (*CLASSES, "Schädel-Ebene")
    uri = exported(tmp_path, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), classes=classes)
    expected_NK = plain_logits(Bundle.load(uri), IMAGES_NHW)
    found_NK = open_engine(uri, "openvino", threads=1).logits(IMAGES_NHW)
    assert found_NK.dtype == np.float32
    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-4)


def test_scores_of_a_sigmoid_model_are_log_sigmoids(tmp_path: Path) -> None:
    uri = exported(tmp_path, loss="binary_cross_entropy")
    expected_NK = -np.log1p(np.exp(-plain_logits(Bundle.load(uri), IMAGES_NHW)))
    found_NK = open_engine(uri, "openvino", threads=1).logits(IMAGES_NHW)
    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_batches_of_any_size_give_the_answers_of_each_image(bundle_uri: str, name: str) -> None:
    engine = open_engine(bundle_uri, name)
    assert (engine.name, engine.size_px) == (name, SIZE_PX)
    alone_NK = np.concatenate([engine.logits(IMAGES_NHW[i : i + 1]) for i in range(17)])
    for rows in (0, 1, 2, 5, 17):
        found_NK = engine.logits(IMAGES_NHW[:rows])
        assert found_NK.shape == (rows, len(CLASSES))
        np.testing.assert_allclose(found_NK, alone_NK[:rows], atol=1e-4)


def test_images_that_do_not_lie_together_in_memory(bundle_uri: str) -> None:
    engine = open_engine(bundle_uri, "openvino", threads=1)
    flipped_NHW = IMAGES_NHW[::-2, :, ::-1]
    np.testing.assert_allclose(
        engine.logits(flipped_NHW), engine.logits(flipped_NHW.copy()), atol=1e-6
    )


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_threads_at_once_get_their_own_answers(bundle_uri: str, hint: Any) -> None:
    engine = open_engine(bundle_uri, "openvino", threads=2, hint=hint)
    expected_NK = engine.logits(IMAGES_NHW)

    def ask(call: int) -> float:
        row = call % 17
        found_NK = engine.logits(IMAGES_NHW[row : row + 1 + call % 3])
        return float(np.abs(found_NK - expected_NK[row : row + len(found_NK)]).max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(ask, range(200))) < 1e-4


def test_an_answer_stays_when_the_next_is_computed(bundle_uri: str) -> None:
    engine = open_engine(bundle_uri, "openvino", threads=1)
    first_NK = engine.logits(IMAGES_NHW[:2])
    before_NK = first_NK.copy()
    engine.logits(IMAGES_NHW[2:4])
    np.testing.assert_array_equal(first_NK, before_NK)


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize(
    "images_NHW",
    [
        IMAGES_NHW.astype(np.float32),
        IMAGES_NHW[:, :-1],
        IMAGES_NHW[0],
        IMAGES_NHW[:, None],
    ],
)
def test_other_arrays_are_refused(bundle_uri: str, name: str, images_NHW: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"uint8 of shape .N, {SIZE_PX}, {SIZE_PX}."):
        open_engine(bundle_uri, name, threads=1).logits(images_NHW)


def test_auto_takes_the_fastest_that_has_been_exported(changed_uri: str) -> None:
    assert open_engine(changed_uri, threads=1).name == "openvino"
    any_answer = QUICK.model_copy(update={"min_agreement": 0.0, "max_accuracy_loss": 1.0})
    export(changed_uri, "openvino-int8", toy_store(24, seed=1), toy_store(8, seed=2), any_answer)
    assert open_engine(changed_uri, threads=1).name == "openvino-int8"
    storage.remove(storage.join(changed_uri, "engines"))
    assert open_engine(changed_uri).name == "torch"


def test_torch_rounds_only_where_an_export_has_found_that_it_may(changed_uri: str) -> None:
    bundle = Bundle.load(changed_uri)
    exact_NK = open_engine(changed_uri, "torch").logits(IMAGES_NHW)
    np.testing.assert_allclose(exact_NK, plain_logits(bundle, IMAGES_NHW), atol=1e-4)
    rounding = QUICK.model_copy(update={"precision": "bf16", "min_agreement": 0.5})
    export(changed_uri, "torch", toy_store(24, seed=1), toy_store(8, seed=2), rounding)
    native = resolve_precision("auto", torch.device("cpu")) == "bf16"
    expected_NK = TorchEngine(bundle, "bf16" if native else "fp32").logits(IMAGES_NHW)
    found_NK = open_engine(changed_uri, "torch").logits(IMAGES_NHW)
    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-4)


def test_an_engine_must_be_known_exported_and_for_the_device(bundle_uri: str) -> None:
    with pytest.raises(ConfigError, match="Known engines: auto, torch, openvino, openvino-int8"):
        open_engine(bundle_uri, "tensorrt")
    with pytest.raises(ConfigError, match=r"fetal export .* --engine openvino-int8"):
        open_engine(bundle_uri, "openvino-int8")
    with pytest.raises(ConfigError, match="runs on the CPU only"):
        open_engine(bundle_uri, "openvino", device="cuda")


def test_an_engine_of_other_weights_is_refused(changed_uri: str) -> None:
    bundle = toy_bundle()
    bundle.model.head.bias.data.add_(1)
    bundle.save(changed_uri)
    for name in ("openvino", "auto"):
        with pytest.raises(StaleInputError, match="other weights"):
            open_engine(changed_uri, name)
    assert open_engine(changed_uri, "torch").name == "torch"


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_damaged_engine_is_refused(changed_uri: str, name: str) -> None:
    path = Path(changed_uri, "engines", "openvino", name)
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        open_engine(changed_uri, "openvino")


@pytest.mark.parametrize("change", [{"format": 2}, {"weights": 3}, {"engine": "tensorrt"}])
def test_an_unreadable_description_is_refused(changed_uri: str, change: dict[str, Any]) -> None:
    path = Path(changed_uri, "engines", "openvino", "engine.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match="fetal export"):
        open_engine(changed_uri, "openvino")


def test_without_openvino_the_message_tells_how_to_install_it(
    bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'fetal-planes\[export\]'"):
        open_engine(bundle_uri, "openvino")
    assert open_engine(bundle_uri, "torch").name == "torch"


WATCHED = """
import sys

connections = []
sys.addaudithook(lambda name, args: name == "socket.connect" and connections.append(args))

from fetal_core.engine import open_engine
from fetal_core.export import ExportConfig, export

sys.path.insert(0, sys.argv[2])
from builders import toy_store

config = ExportConfig(timing_s=0.01, calibration_images=4, min_agreement=0, max_accuracy_loss=1)
export(sys.argv[1], "openvino-int8", toy_store(8), toy_store(4), config)
open_engine(sys.argv[1], "openvino-int8")
print(len(connections), "connections")
"""


def test_no_use_is_reported_to_anyone(tmp_path: Path) -> None:
    home, bundle = tmp_path / "home", tmp_path / "bundle"
    home.mkdir()
    toy_bundle().save(str(bundle))
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(bundle), str(Path(__file__).parent)],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout == "0 connections\n"
    assert list(home.iterdir()) == []


EXCHANGED = """
import os, signal, sys

from fetal_core.engine import open_engine

signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
engine = open_engine(sys.argv[1], "openvino")
for _ in range(2):
    engine = open_engine(sys.argv[1], "openvino")
del engine
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_handled_after_engines_have_been_exchanged(bundle_uri: str) -> None:
    words = [sys.executable, "-c", EXCHANGED, bundle_uri]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n")


FIRST_CALLS = """
import sys, threading

import numpy as np

from fetal_core.engine import open_engine


def score():
    together.wait()
    engine.logits(np.zeros((1, engine.size_px, engine.size_px), np.uint8))


engine = open_engine(sys.argv[1], "openvino")
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)
threads = [threading.Thread(target=score, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
print(sum(not thread.is_alive() for thread in threads), "answered")
"""


def test_threads_may_call_an_engine_for_the_first_time_together(bundle_uri: str) -> None:
    words = [sys.executable, "-c", FIRST_CALLS, bundle_uri]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout == "4 answered\n", done.stderr


def test_an_earlier_import_that_may_report_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_telemetry", ModuleType("openvino_telemetry"))
    openvino()
    assert "opt_in_out --opt_out" in caplog.text
