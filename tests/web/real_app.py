"""The application itself on loopback, around a small untrained model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn

from fake_api import CLASSES
from fetal_core.bundle import Bundle, BundleInfo
from fetal_core.model import PlaneClassifier
from fetal_core.preprocess import PreprocessConfig
from ray_jobs.http_api import create_app
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.served import load_served


@contextmanager
def real_app(folder: Path) -> Iterator[str]:
    """Address of a running application whose bundle lies in ``folder``."""
    uri = str(folder / "bundle")
    untrained_bundle().save(uri)
    settings = HttpSettings()
    inference = Inference(settings, load_served(uri, "planes", "7", engine="torch"))
    config = uvicorn.Config(create_app(inference, settings), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    inference.close()


def untrained_bundle() -> Bundle:
    info = BundleInfo(
        architecture="squeezenet1_1",
        classes=CLASSES,
        preprocess=PreprocessConfig(size_px=96),
        loss="cross_entropy",
        mean=(0.2,),
        std=(0.2,),
        threshold=0.4,
        metrics={"test": {"accuracy": 0.25, "macro_f1": 0.1, "images": 40}},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PlaneClassifier(info.architecture, len(info.classes), mean=info.mean, std=info.std)
    return Bundle(info, model.eval())
