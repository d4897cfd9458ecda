"""``fetal demo``: a synthetic cohort, all stages on it, a prediction, and one from the endpoint."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fetal_core.phantom import PhantomConfig
from ray_jobs import predict
from ray_jobs.cluster import connected
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say
from ray_jobs.front import FrontConfig, free_port
from ray_jobs.job import load_job
from ray_jobs.phantom import local_folder, phantom_shown
from ray_jobs.run import run_all
from ray_jobs.serve import serving
from ray_jobs.serve_app import ServeConfig
from ray_jobs.tune import load_sweep, tune_shown
from ray_jobs.tune_report import show
from ray_jobs.workspace import Prepared

IMAGES, PATIENTS, SEED = 1500, 300, 7


@dataclass
class DemoArgs:
    """The whole way from images to a report on synthetic images, in a few minutes."""

    out: str = "demo"
    """Local folder for everything that is made."""


def main(argv: Sequence[str]) -> None:
    """The command line of the demonstration."""
    args = parse_args(DemoArgs, argv, "fetal demo")
    started = time.monotonic()
    out = local_folder(args.out)
    cohort = out / "cohort"
    phantom_shown(PhantomConfig(images=IMAGES, patients=PATIENTS, seed=SEED), cohort)
    prepared = str(out / "prepared")
    with connected():
        run = run_all(str(cohort), str(out), load_job("demo"))
        say("a small sweep")
        show(tune_shown(prepared, str(out / "sweep"), load_sweep("demo-sweep", prepared)))
        _, split, _ = Prepared(prepared).load()
        files = [str(cohort / "images" / f"{name}.png") for name in split.parts["test"][:3]]
        found, _ = predict.predict_files(run.bundle_uri, files)
        predict.show(found)
        say("the endpoint")
        _ask_endpoint(run.bundle_uri, Path(files[0]))
    say(f"serve it: fetal serve {run.bundle_uri}")
    say(f"done in {time.monotonic() - started:.0f} s; open {run.report_uri} in a browser")


def _ask_endpoint(bundle_uri: str, image: Path) -> None:
    """Serve a bundle on any free port and post an image to it."""
    with serving(ServeConfig(model=bundle_uri), FrontConfig(port=free_port())) as address:
        url = f"{address}/v1/predict"
        headers = {"Content-Type": "image/png"}
        request = urllib.request.Request(url, image.read_bytes(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    frame = answer["results"][0]["frames"][0]
    say(
        f"POST {url} of {image.name}: {frame['plane']} {frame['confidence']:.1%} "
        f"{frame['decision']}, {answer['timings_ms']['total']:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(stage("demo"))
