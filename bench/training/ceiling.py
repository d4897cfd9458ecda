"""The limit: the same optimizer step on one batch that lies in memory, in this process alone."""

from __future__ import annotations

import torch

from bench.training.common import Clock, arguments, cores, show
from fetal_core.losses import Loss, one_hot
from fetal_core.model import ModelConfig, build
from fetal_core.optim import OptimConfig, make_optimizer
from fetal_core.steps import resolve_precision

CLASSES = 6


def main() -> None:
    args = arguments(("auto", "bf16", "fp32"))
    precision = resolve_precision(args.precision, torch.device("cpu"))
    config = ModelConfig(architecture=args.architecture, weights="none")
    model = build(config, CLASSES, 0.2, 0.2, seed=0, image_size_px=args.size_px)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, OptimConfig())
    loss_of = Loss("cross_entropy")
    images_N1HW = torch.rand(args.batch, 1, args.size_px, args.size_px)
    images_N1HW = images_N1HW.contiguous(memory_format=torch.channels_last)
    targets_NK = one_hot(torch.arange(args.batch) % CLASSES, CLASSES)
    clock = Clock(args.batch, args.warm_up, args.steps)
    done = False
    while not done:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model(images_N1HW).float(), targets_NK).mean()
        loss.backward()
        optimizer.step()
        done = clock.tick()
    show(clock, precision=precision, threads=cores())


if __name__ == "__main__":
    main()
