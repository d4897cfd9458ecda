"""Model bundles: a folder with weights and all that inference needs; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field

from fetal_core import storage
from fetal_core.config import Config, parse
from fetal_core.errors import FetalError, ModelError
from fetal_core.losses import LossName
from fetal_core.model import PlaneClassifier
from fetal_core.preprocess import PreprocessConfig

logger = logging.getLogger(__name__)

FORMAT = 1
MODEL = "model.json"
WEIGHTS = "weights.safetensors"


class BundleInfo(Config):
    """Content of ``model.json``.

    Attributes:
        loss: the training loss; it decides how logits become probabilities.
        mean: normalisation of grey values in [0, 1]: one value, or one for each of three channels.
        temperature: divides the logits; 1 before calibration.
        threshold: confidence from which a prediction is accepted, or None before calibration.
        metrics: of the validation part, and of the test part once evaluated.
        recipe: the whole configuration of the run.
        hashes: of manifest, split, shards and weights.
        versions: of the software that trained the model.
    """

    format: int = FORMAT
    architecture: str
    classes: tuple[str, ...]
    preprocess: PreprocessConfig
    loss: LossName
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = 1.0
    threshold: float | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    git_commit: str | None = None
    created: str = ""


@dataclass(frozen=True)
class Bundle:
    """A model ready for inference."""

    info: BundleInfo
    model: PlaneClassifier

    def save(self, uri: str) -> None:
        """Write the bundle; ``model.json`` last, so that a bundle with it is complete."""
        data = safetensors.torch.save(
            {key: value.contiguous() for key, value in self.model.state_dict().items()}
        )
        hashes = self.info.hashes | {"weights": hashlib.sha256(data).hexdigest()}
        storage.write_bytes(storage.join(uri, WEIGHTS), data)
        write_info(uri, self.info.model_copy(update={"hashes": hashes}))

    @classmethod
    def load(cls, uri: str, device: str = "cpu") -> Bundle:
        """Read a bundle and put its model in evaluation mode.

        Raises:
            ModelError: not a bundle, or its weights are not those it was saved with.
            StorageError: a file of it cannot be read.
        """
        info = read_info(uri)
        data = storage.read_bytes(storage.join(uri, WEIGHTS))
        if hashlib.sha256(data).hexdigest() != info.hashes.get("weights"):
            raise ModelError(f"{uri}: {WEIGHTS} is damaged or of another model. Train again.")
        model = PlaneClassifier(info.architecture, len(info.classes), mean=info.mean, std=info.std)
        try:
            model.load_state_dict(safetensors.torch.load(data))
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise ModelError(f"{uri}: the weights do not fit {MODEL}: {error}") from None
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(info, model.eval())


def read_info(uri: str) -> BundleInfo:
    """Read ``model.json`` of a bundle.

    Raises:
        ModelError: there is none, or it is of another format.
        StorageError: it cannot be read or is not JSON.
    """
    path = storage.join(uri, MODEL)
    if not storage.is_file(path):
        raise ModelError(f"{uri}: not a model bundle ({MODEL} is missing). Give a run's `bundle`.")
    values = storage.read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelError(f"{path}: unknown bundle format; this version reads format {FORMAT}.")
    try:
        return parse(BundleInfo, values, path)
    except FetalError as error:
        raise ModelError(str(error)) from None


def write_info(uri: str, info: BundleInfo) -> None:
    """Write ``model.json``."""
    text = json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False)
    storage.write_bytes(storage.join(uri, MODEL), text.encode())


def software_versions() -> dict[str, str]:
    """Versions that matter for reproducing a run."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
    }


def git_commit() -> str | None:
    """Commit of the source tree this package runs from.

    Outside a checkout, as on a cluster, the one that ``FETAL_GIT_COMMIT`` names, else None.
    """
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("FETAL_GIT_COMMIT")
    return done.stdout.strip()


def now() -> str:
    """The present time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
