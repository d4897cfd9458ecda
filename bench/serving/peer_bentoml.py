"""Peer: BentoML, with its threads for synchronous interfaces."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image as PILImage

from bench.serving.common import Model
from fetal_core.preprocess import preprocess


@bentoml.service(workers=1, traffic={"timeout": 60})
class Planes:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def predict(self, file: PILImage) -> dict[str, Any]:
        image_HW = np.asarray(file.convert("L"))
        return self.model.answers(preprocess(image_HW, self.model.config)[None])[0]
