"""Export of a bundle to a faster engine, refused unless it answers as the bundle does."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from fetal_core import storage
from fetal_core.agreement import Agreement, Speed, compare, measure_speeds, score
from fetal_core.bundle import Bundle, now, read_info, software_versions, write_info
from fetal_core.config import Config
from fetal_core.engine import (
    CONSTANTS,
    ENGINE,
    GRAPH,
    Engine,
    EngineInfo,
    EngineName,
    OpenVinoEngine,
    TorchEngine,
    computes_in,
    engine_uri,
    openvino,
)
from fetal_core.errors import DataError, FetalError, Problem
from fetal_core.fit_config import Precision
from fetal_core.machine import cores
from fetal_core.quantise import (
    METHODS,
    calibration_images,
    convert,
    converter_versions,
    quantise,
)
from fetal_core.rows import RowStore
from fetal_core.steps import resolve_precision

OnProgress = Callable[[str, int, int], None]

_ROUNDING = 1e-9


class ExportError(FetalError):
    """An engine does not answer as its bundle does; nothing was written."""


class ExportConfig(Config):
    """How to export.

    Attributes:
        min_agreement: least share of validation images with the same answer as torch in float32.
        max_accuracy_loss: greatest share of validation images by which accuracy may fall.
        calibration_images: training images that the ranges of 8-bit activations come from.
        seed: of their draw.
        threads: compute threads while measuring; 0 for as many as there are cores.
        precision: number format of what is not quantised; ``auto`` takes bfloat16 where the
            processor computes in it, else float32. So does OpenVINO where bfloat16 is asked for.
        timing_s: seconds for each measurement of speed.
    """

    min_agreement: float = Field(default=0.99, ge=0, le=1)
    max_accuracy_loss: float = Field(default=0.005, ge=0, le=1)
    calibration_images: int = Field(default=300, ge=1)
    seed: int = 0
    threads: int = Field(default=0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    timing_s: float = Field(default=2.0, gt=0)


@dataclass(frozen=True)
class ExportResult:
    """What was exported and measured.

    Attributes:
        uri: folder of the engine.
        speed_fp32: of torch in float32, channels last, on the same machine.
        method: how it was converted; ``None`` for an engine that needs no conversion.
        refused: methods that were tried before, each with what it reached.
    """

    engine: EngineName
    uri: str
    agreement: Agreement
    speed: Speed
    speed_fp32: Speed
    method: str | None
    refused: dict[str, str]


@dataclass(frozen=True)
class _Candidate:
    """An engine to measure, and the files it is loaded from."""

    engine: Engine
    method: str | None
    graph: Any = None


def export(
    bundle_uri: str,
    engine_name: EngineName,
    calibration: RowStore,
    validation: RowStore,
    config: ExportConfig | None = None,
    on_progress: OnProgress = lambda step, done, total: None,
) -> ExportResult:
    """Convert a bundle, measure it against torch in float32 and keep it in the bundle.

    Plain 8-bit quantisation that does not agree is tried again in finer ways before it is refused.

    Args:
        bundle_uri: folder of the bundle, local or S3; gets ``engines/NAME/`` and the figures.
        engine_name: ``torch`` needs no conversion; it is measured in ``config.precision``, in which
            it will then serve.
        calibration: rows of the training part.
        validation: rows of the validation part.
        config: limits and settings.
        on_progress: called with (step, done, total).

    Raises:
        ExportError: no way of conversion agrees with the bundle; nothing was written.
        ConfigError: OpenVINO or NNCF are missing or cannot convert this architecture.
        DataError: a part is empty.
        ModelError: the bundle is damaged.
    """
    config = config or ExportConfig()
    _check_rows(calibration, validation)
    bundle = Bundle.load(bundle_uri)
    reference = TorchEngine(bundle, "fp32", config.threads or cores())
    step = "validating torch in float32"
    logits_NK = score(reference, validation, partial(on_progress, step))
    refused: dict[str, str] = {}
    for candidate in _candidates(bundle, engine_name, calibration, config, on_progress):
        name = candidate.method or engine_name
        found_NK = score(candidate.engine, validation, partial(on_progress, f"validating {name}"))
        agreement = compare(logits_NK, found_NK, validation, bundle.info.temperature)
        if _agrees(agreement, config):
            on_progress("measuring speed", 0, 1)
            speed, fp32 = measure_speeds([candidate.engine, reference], config.timing_s)
            uri, method = engine_uri(bundle_uri, engine_name), candidate.method
            result = ExportResult(engine_name, uri, agreement, speed, fp32, method, refused)
            _write(bundle_uri, bundle.info.hashes["weights"], result, candidate.graph, config)
            return result
        refused[name] = str(agreement)
    raise ExportError(_refusal(bundle_uri, engine_name, refused, config))


def _candidates(
    bundle: Bundle,
    engine_name: EngineName,
    calibration: RowStore,
    config: ExportConfig,
    on_progress: OnProgress,
) -> Iterator[_Candidate]:
    """Engines to measure, made one at a time, the fastest first."""
    if engine_name == "torch":
        yield _Candidate(TorchEngine(bundle, config.precision, config.threads or cores()), None)
        return
    on_progress("converting", 0, 1)
    graph = convert(bundle)
    if engine_name == "openvino":
        yield _compiled(engine_name, graph, "float", config)
        return
    images_NHW = calibration_images(calibration, config.calibration_images, config.seed)
    for method in METHODS:
        step = f"calibrating {method.name}"
        quantised = quantise(
            graph, images_NHW, bundle.info.architecture, method, partial(on_progress, step)
        )
        yield _compiled(engine_name, quantised, method.name, config)


def _compiled(name: EngineName, graph: Any, method: str, config: ExportConfig) -> _Candidate:
    return _Candidate(
        OpenVinoEngine(name, graph, _precision(name, config), config.threads), method, graph
    )


def _precision(name: EngineName, config: ExportConfig) -> Precision:
    """What an engine computes in here; torch imitates bfloat16 on processors without it."""
    wanted = resolve_precision(config.precision, torch.device("cpu"))
    return wanted if name == "torch" else computes_in(wanted)


def _agrees(found: Agreement, config: ExportConfig) -> bool:
    """Whether an engine keeps the limits, to within the rounding of a share."""
    lost = found.accuracy_fp32 - found.accuracy
    return (
        found.agreement >= config.min_agreement - _ROUNDING
        and lost <= config.max_accuracy_loss + _ROUNDING
    )


def _write(
    bundle_uri: str, weights: str, result: ExportResult, graph: Any, config: ExportConfig
) -> None:
    """Write the graph, then ``engine.json``, then the figures into the bundle.

    An engine without ``engine.json`` does not exist for readers, so none is ever seen half written.
    """
    storage.remove(storage.join(result.uri, ENGINE))
    files: dict[str, str] = {}
    if graph is not None:
        with tempfile.TemporaryDirectory() as folder:
            openvino().save_model(graph, str(Path(folder, GRAPH)), compress_to_fp16=False)
            for name in (CONSTANTS, GRAPH):
                file = Path(folder, name)
                files[name] = hashlib.sha256(file.read_bytes()).hexdigest()
                storage.upload(file, storage.join(result.uri, name))
    figures = _figures(result, config)
    info = EngineInfo(
        engine=result.engine,
        weights=weights,
        files=files,
        precision=_precision(result.engine, config),
        method={"name": result.method, "refused": result.refused, **config.model_dump()},
        figures=figures,
        versions=software_versions() if graph is None else converter_versions(),
        created=now(),
    )
    storage.write_json(storage.join(result.uri, ENGINE), info.model_dump(mode="json"))
    bundle_info = read_info(bundle_uri)
    engines = bundle_info.metrics.get("engines", {}) | {result.engine: figures}
    metrics = bundle_info.metrics | {"engines": engines}
    write_info(bundle_uri, bundle_info.model_copy(update={"metrics": metrics}))


def _figures(result: ExportResult, config: ExportConfig) -> dict[str, Any]:
    return {
        **asdict(result.agreement),
        "method": result.method,
        **asdict(result.speed),
        "fp32": asdict(result.speed_fp32),
        "threads": config.threads or cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _check_rows(calibration: RowStore, validation: RowStore) -> None:
    empty = [
        Problem("empty-part", part, "has no images", "Change `split` and prepare again.")
        for part, store in (("train", calibration), ("val", validation))
        if not len(store)
    ]
    if empty:
        raise DataError("an export needs training and validation images:", empty)


def _refusal(
    bundle_uri: str, engine_name: str, refused: dict[str, str], config: ExportConfig
) -> str:
    tried = "\n".join(f"  - {method}: {reached}" for method, reached in refused.items())
    return (
        f"{bundle_uri}: {engine_name} does not answer as the model does in float32; wanted at "
        f"least {config.min_agreement:.1%} agreement and at most {config.max_accuracy_loss:.1%} "
        f"of accuracy lost. Nothing was written. Tried:\n{tried}\n"
        "Use the engine 'openvino' or 'torch', calibrate on more images, or loosen the limits."
    )
