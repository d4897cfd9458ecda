"""Peer: fastai's Learner with its own loader and augmentation; `to_bf16` changes nothing on a CPU.

fastai 2.8 opens `autocast("cuda")` whatever the device, so that a CPU computes in float32.
"""

from __future__ import annotations

from functools import partial

import torch
from fastai.vision.all import (
    Callback,
    CancelFitException,
    CrossEntropyLossFlat,
    ImageDataLoaders,
    Learner,
    OptimWrapper,
    PadMode,
    Resize,
    ResizeMethod,
    aug_transforms,
)

from bench.training.common import WORKERS, Clock, arguments, network, show


class Watch(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.dtype = ""

    def after_pred(self) -> None:
        self.dtype = str(self.learn.pred.dtype)

    def after_batch(self) -> None:
        if self.training and self.clock.tick():
            raise CancelFitException


def main() -> None:
    args = arguments(("bf16", "fp32"))
    loaders = ImageDataLoaders.from_folder(
        args.folder,
        valid_pct=0.02,
        seed=0,
        item_tfms=Resize(args.size_px, ResizeMethod.Pad, PadMode.Zeros),
        batch_tfms=aug_transforms(max_rotate=15, max_zoom=1.15, max_lighting=0.15, max_warp=0),
        bs=args.batch,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    clock = Clock(args.batch, args.warm_up, args.steps)
    watch = Watch(clock)
    learner = Learner(
        loaders,
        network(args.architecture, len(loaders.vocab)),
        CrossEntropyLossFlat(),
        opt_func=partial(OptimWrapper, opt=torch.optim.SGD),
        cbs=[watch],
    )
    if args.precision == "bf16":
        learner = learner.to_bf16()
    with learner.no_logging(), learner.no_bar():
        learner.fit(1, lr=0.01)
    computed = "float32" if watch.dtype == "torch.float32" else args.precision
    show(clock, "fastai", precision=f"{args.precision} asked, outputs of {computed}")


if __name__ == "__main__":
    main()
