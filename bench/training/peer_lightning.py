"""Peer: PyTorch Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional

from bench.training.common import Clock, arguments, network, show
from bench.training.peer_data import loader


class Classifier(lightning.LightningModule):
    def __init__(self, architecture: str, classes: int) -> None:
        super().__init__()
        self.network = network(architecture, classes)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Watch(lightning.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *args: Any) -> None:
        self.clock.tick()


def main() -> None:
    args = arguments(("bf16-mixed", "32-true"))
    batches = loader(args.folder, args.size_px, args.batch)
    clock = Clock(args.batch, args.warm_up, args.steps)
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=args.precision,
        max_steps=args.warm_up + args.steps,
        callbacks=[Watch(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(args.architecture, len(batches.dataset.classes)), batches)
    show(clock, "lightning", precision=args.precision)


if __name__ == "__main__":
    main()
