"""Engines that run a bundle's network: torch, or a graph that ``fetal_core.export`` has written."""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fetal_core import storage
from fetal_core.bundle import Bundle, BundleInfo, read_info
from fetal_core.config import Config, parse
from fetal_core.errors import ConfigError, FetalError, ModelError, StaleInputError
from fetal_core.fit_config import Precision
from fetal_core.machine import cores
from fetal_core.predict import Predictor
from fetal_core.steps import resolve_precision

logger = logging.getLogger(__name__)

EngineName = Literal["torch", "openvino", "openvino-int8"]
Hint = Literal["latency", "throughput"]

FORMAT = 1
ENGINES = "engines"
ENGINE = "engine.json"
GRAPH, CONSTANTS = "model.xml", "model.bin"
_FASTEST_FIRST: tuple[EngineName, ...] = ("openvino-int8", "openvino")


class EngineInfo(Config):
    """Content of ``engine.json``; written last, so an engine that has it is complete.

    Attributes:
        weights: SHA-256 of the bundle's weights that the graph was made from.
        files: SHA-256 of the files beside it.
        precision: number format of what is not quantised, in which the figures were measured.
        method: how the network was converted.
        figures: agreement with torch in float32, and speed.
        versions: of the software that made it.
    """

    format: int = FORMAT
    engine: EngineName
    weights: str
    files: dict[str, str] = Field(default_factory=dict)
    precision: Precision = "fp32"
    method: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""


class Engine(Protocol):
    """Runs a bundle's network; safe to call from several threads at once.

    Attributes:
        name: ``torch``, ``openvino`` or ``openvino-int8``.
        size_px: side of the square images that it takes.
    """

    name: str
    size_px: int

    def logits(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scores (N, K) of preprocessed images; their softmax is the uncalibrated probability.

        Raises:
            ValueError: the images are not uint8 of shape (N, size_px, size_px).
        """
        ...


class TorchEngine:
    """The network of ``bundle`` in torch, channels last.

    ``threads`` sets torch's number for the whole process; 0 leaves it.
    """

    name = "torch"

    def __init__(self, bundle: Bundle, precision: Precision = "fp32", threads: int = 0) -> None:
        self.bundle = bundle
        self.size_px = bundle.info.preprocess.size_px
        self._device = next(bundle.model.parameters()).device
        self.precision = resolve_precision(precision, self._device)
        self._predictor = Predictor(bundle)
        if threads:
            torch.set_num_threads(threads)

    def logits(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        _check(images_NHW, self.size_px)
        with self._autocast():
            return self._predictor.logits(images_NHW)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self._device.type, dtype)


class OpenVinoEngine:
    """A compiled OpenVINO graph from uint8 images to scores, for batches of any size.

    Each thread has an inference request of its own, as they must not be shared. With ``latency``
    all threads of the processor work on one call at a time; with ``throughput`` each of ``threads``
    concurrent calls has one of its own. Threads are not pinned to cores: replicas that share a
    machine would all be pinned to its first ones.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        precision: Precision = "fp32",
        threads: int = 0,
        hint: Hint = "latency",
    ) -> None:
        """Compile a graph.

        Args:
            name: of the engine.
            model: ``openvino.Model``, uint8 (N, H, W) -> float32 (N, K).
            precision: of what is not quantised; float32 where the processor lacks bfloat16.
            threads: 0 for as many as there are cores.
            hint: whether to share the threads out among concurrent calls.
        """
        self.name = name
        self.size_px = int(model.input(0).partial_shape[1].get_length())
        self._classes = int(model.output(0).partial_shape[1].get_length())
        threads = threads or cores()
        settings = {
            "PERFORMANCE_HINT": hint.upper(),
            "NUM_STREAMS": 1 if hint == "latency" else threads,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if computes_in(precision) == "bf16" else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = _core(openvino()).compile_model(model, "CPU", settings)
        self._of_thread = threading.local()

    def logits(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        _check(images_NHW, self.size_px)
        if not len(images_NHW):
            return np.zeros((0, self._classes), np.float32)
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        found = self._of_thread.request.infer([np.ascontiguousarray(images_NHW)], share_inputs=True)
        logits_NK: NDArray[np.float32] = found[0]
        return logits_NK


def open_engine(
    bundle_uri: str,
    name: str = "auto",
    device: str = "cpu",
    threads: int = 0,
    hint: Hint = "latency",
) -> Engine:
    """The engine ``name`` of a bundle.

    Args:
        bundle_uri: folder of the bundle.
        name: ``auto`` takes, on a CPU, the fastest that has been exported, else torch. Torch
            computes in float32, as `fetal predict` does, unless an export has found that it
            answers alike in another number format.
        device: ``cpu``, or torch's name of a GPU.
        threads: compute threads; 0 for as many as there are cores (torch: as many as it has).
        hint: of OpenVINO, see :class:`OpenVinoEngine`.

    Raises:
        ConfigError: no such engine, not exported, not for this device, or OpenVINO is missing.
        ModelError: bundle or engine are damaged.
        StaleInputError: the engine was exported from other weights.
    """
    info = read_info(bundle_uri)
    if name not in ("auto", *get_args(EngineName)):
        known = ", ".join(("auto", *get_args(EngineName)))
        raise ConfigError(f"engine {name!r} is not known. Known engines: {known}.")
    if name == "auto":
        name = _fastest(bundle_uri) if device == "cpu" else "torch"
    if name == "torch":
        exported = storage.is_file(storage.join(engine_uri(bundle_uri, name), ENGINE))
        wanted = read_engine_info(bundle_uri, name, info).precision if exported else "fp32"
        precision = computes_in(wanted, device)
        return TorchEngine(Bundle.load(bundle_uri, device), precision, threads)
    if device != "cpu":
        raise ConfigError(f"engine {name!r} runs on the CPU only. On {device} choose 'torch'.")
    found = read_engine_info(bundle_uri, name, info)
    return OpenVinoEngine(name, _read_graph(bundle_uri, found), found.precision, threads, hint)


def read_engine_info(bundle_uri: str, name: str, info: BundleInfo) -> EngineInfo:
    """``engine.json`` of an exported engine.

    Raises:
        ConfigError: it has not been exported.
        ModelError: it is of another format.
        StaleInputError: it was exported from other weights than ``info`` names.
    """
    uri = engine_uri(bundle_uri, name)
    again = f"Run `fetal export {bundle_uri} --engine {name}`"
    path = storage.join(uri, ENGINE)
    if not storage.is_file(path):
        raise ConfigError(f"{bundle_uri}: engine {name!r} has not been exported. {again}.")
    values = storage.read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelError(f"{path}: unknown engine format; this version reads {FORMAT}. {again}.")
    try:
        found = parse(EngineInfo, values, path)
    except FetalError as error:
        raise ModelError(f"{error}\n{again}.") from None
    if found.weights != info.hashes.get("weights"):
        raise StaleInputError(f"{uri}: exported from other weights than the bundle's. {again}.")
    return found


def engine_uri(bundle_uri: str, name: str) -> str:
    """Folder of an exported engine."""
    return storage.join(bundle_uri, ENGINES, name)


def openvino() -> Any:
    """The module ``openvino``, imported at the first call and without its usage reports.

    OpenVINO and NNCF report each use to their makers unless ``openvino_telemetry`` is absent.

    Raises:
        ConfigError: it is not installed.
    """
    reports = sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    if reports is not None:
        logger.warning(
            "OpenVINO was imported elsewhere first and may report its use; "
            "`opt_in_out --opt_out` forbids it."
        )
    try:
        import openvino as module
    except ImportError:
        raise ConfigError(
            "OpenVINO is not installed. Run `pip install 'fetal-planes[export]'`, "
            "or choose the engine 'torch'."
        ) from None
    return module


def _fastest(bundle_uri: str) -> str:
    for name in _FASTEST_FIRST:
        if storage.is_file(storage.join(engine_uri(bundle_uri, name), ENGINE)):
            return name
    return "torch"


def _read_graph(bundle_uri: str, info: EngineInfo) -> Any:
    core, uri = _core(openvino()), engine_uri(bundle_uri, info.engine)
    data = {name: storage.read_bytes(storage.join(uri, name)) for name in (GRAPH, CONSTANTS)}
    for name, content in data.items():
        if hashlib.sha256(content).hexdigest() != info.files.get(name):
            raise ModelError(
                f"{uri}/{name} is damaged or of another export. "
                f"Run `fetal export {bundle_uri} --engine {info.engine}` again."
            )
    return core.read_model(data[GRAPH], data[CONSTANTS])


@cache
def _core(runtime: Any) -> Any:
    """The one ``openvino.Core`` of the process.

    Each gives its thread a stack for signal handlers and takes it away with its last model; of two,
    the later one gives back the earlier one's, freed by then, and the next signal ends the process.
    """
    # Makes OpenVINO's table of types, which two threads must not begin at once: one then waits for
    # the table, holding the interpreter's lock, and the other for that lock (2026.4).
    runtime.Type.u8.to_dtype()
    return runtime.Core()


def computes_in(precision: Precision, device: str = "cpu") -> Precision:
    """``precision``, or float32 where the device does not compute in it."""
    return precision if resolve_precision("auto", torch.device(device)) == precision else "fp32"


def _check(images_NHW: NDArray[np.uint8], size_px: int) -> None:
    if images_NHW.dtype != np.uint8 or images_NHW.shape[1:] != (size_px, size_px):
        raise ValueError(
            f"images must be uint8 of shape (N, {size_px}, {size_px}), "
            f"got {images_NHW.dtype} {images_NHW.shape}"
        )
