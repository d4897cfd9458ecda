"""Peer: a plain PyTorch loop, as most tutorials have it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional

from bench.training.common import Clock, arguments, network, show
from bench.training.peer_data import loader

FP32, BF16, CHANNELS_LAST = "fp32", "bf16", "bf16-channels-last"


def autocast(precision: str) -> AbstractContextManager[None]:
    return nullcontext() if precision == FP32 else torch.autocast("cpu", torch.bfloat16)


def main() -> None:
    args = arguments((FP32, BF16, CHANNELS_LAST))
    batches = loader(args.folder, args.size_px, args.batch)
    model = network(args.architecture, len(batches.dataset.classes)).train()
    layout = torch.contiguous_format
    if args.precision == CHANNELS_LAST:
        layout = torch.channels_last
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    clock = Clock(args.batch, args.warm_up, args.steps)
    for images, labels in batches:
        optimizer.zero_grad()
        with autocast(args.precision):
            logits = model(images.contiguous(memory_format=layout))
            loss = functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item()  # for the progress bar, as everyone has one
        if clock.tick():
            break
    show(clock, precision=args.precision)


if __name__ == "__main__":
    main()
