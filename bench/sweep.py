"""What early stopping saves and what a sweep costs beside its training.

    python -m bench.sweep PREPARED --architecture resnet18 --epochs 9

Runs the trials of the configuration `sweep` twice in one go, with ASHA and without, and prints
epochs, the best trial's validation score, the default's, and the overhead: wall time beyond the
time of the epochs spread evenly over the trials at a time, as a share of the latter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from fetal_core.trials import Trial
from ray_jobs.cluster import connected
from ray_jobs.sweep import SweepJob
from ray_jobs.tune import load_sweep, tune
from ray_jobs.tune_report import SweepOutcome


def settings(args: argparse.Namespace, scheduler: str) -> SweepJob:
    job = load_sweep("sweep", args.prepared)
    changed = {"epochs": args.epochs, "max_train_images": args.images}
    return job.model_copy(
        update={
            "model": job.model.model_copy(update={"architecture": args.architecture}),
            "train": job.train.model_copy(update=changed),
            "search": job.search.model_copy(
                update={"scheduler": scheduler, "trials": args.trials, "seed": args.seed}
            ),
        }
    )


def show(trial: Trial, done: int, total: int) -> None:
    score = trial.score("val_macro_f1")
    print(f"  {trial.number:>2}/{total} {trial.status} {len(trial.history)} {score}", flush=True)


def figures(outcome: SweepOutcome, wall_s: float) -> str:
    found = json.loads(Path(outcome.sweep.figures_uri).read_text("utf-8"))
    return (
        f"{found['epochs_spent']} of {found['epochs_planned']} epochs, "
        f"{found['counts']['stopped']} trials stopped, best {found['best_score']:.4f}, "
        f"default {found['default_score']:.4f}, {wall_s:.0f} s, "
        f"overhead {found['overhead_share']:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--images", type=int)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out, connected():
        for scheduler in ("asha", "none"):
            started = time.perf_counter()
            outcome = tune(
                args.prepared, f"{out}/{scheduler}", settings(args, scheduler), on_trial=show
            )
            print(f"{scheduler}: {figures(outcome, time.perf_counter() - started)}", flush=True)


if __name__ == "__main__":
    main()
