"""Peer: LitServe with its dynamic batching; it looks at annotations, which must not be strings."""

import os
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from bench.serving.common import Model


class Planes(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Request) -> np.ndarray:
        return self.model.image(request["file"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images_NHW: np.ndarray) -> list[dict[str, Any]]:
        return self.model.answers(images_NHW)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Planes(max_batch_size=8, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(os.environ["BENCH_PORT"]), log_level="warning", generate_client_file=False)
