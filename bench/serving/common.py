"""What the peers share with us: decoding, resizing and the quantised graph."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from fetal_core.images import decode
from fetal_core.preprocess import PreprocessConfig, preprocess

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # reports its use
import openvino  # noqa: E402

BUNDLE = Path(os.environ.get("BENCH_BUNDLE", ""))


class Model:
    """The quantised graph, compiled as OpenVINO does by default, and the answers' classes."""

    def __init__(self, **settings: Any) -> None:
        info = json.loads((BUNDLE / "model.json").read_text())
        self.classes = info["classes"]
        self.config = PreprocessConfig(**info["preprocess"])
        graph = BUNDLE / "engines" / "openvino-int8" / "model.xml"
        self.compiled = openvino.Core().compile_model(graph, "CPU", settings)
        self._of_thread = threading.local()
        # Two threads whose first calls meet would wait for each other for ever (OpenVINO 2026.4).
        openvino.Type.u8.to_dtype()

    def image(self, data: bytes) -> np.ndarray:
        """A file's network input, uint8 (224, 224)."""
        return preprocess(decode(data), self.config)

    def answers(self, images_NHW: np.ndarray) -> list[dict[str, Any]]:
        """Probabilities for a batch."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self.compiled.create_infer_request()
        logits_NK = self._of_thread.request.infer([images_NHW], share_inputs=True)[0]
        odds_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
        found = odds_NK / odds_NK.sum(axis=1, keepdims=True)
        return [
            {"plane": self.classes[int(row_K.argmax())], "probabilities": row_K.tolist()}
            for row_K in found
        ]
