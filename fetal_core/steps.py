"""Forward and backward passes over an epoch, on one rank of any number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

from fetal_core.augment import augment, row_seeds
from fetal_core.batches import Batch, BatchPlan, evaluation_batch, evaluation_rows
from fetal_core.config import digest
from fetal_core.ema import Ema
from fetal_core.errors import NonFiniteLossError
from fetal_core.fit_config import FitConfig, Precision
from fetal_core.losses import Loss, mixup, one_hot
from fetal_core.model import PlaneClassifier
from fetal_core.optim import Schedule
from fetal_core.rows import RowStore
from fetal_core.run_context import RunContext
from fetal_core.totals import EpochPart, Totals


def resolve_precision(wanted: Precision, device: torch.device) -> Precision:
    """The number format to compute in; ``auto`` takes bfloat16 where the hardware does."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if native else "fp32"


class StepEngine:
    """Runs a model over the rows of a part."""

    def __init__(
        self, model: PlaneClassifier, loss: Loss, context: RunContext, precision: Precision
    ) -> None:
        """Moves the model to channels-last memory, which its convolutions prefer."""
        self.precision = resolve_precision(precision, context.device)
        self.model = model.to(memory_format=torch.channels_last)
        self.classes = model.head.out_features
        self.context = context
        self._loss = loss
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=self.precision == "fp16")

    @cached_property
    def _wrapped(self) -> nn.Module:
        """The model as it is trained; made at the first step, when the weights to share are set."""
        return self.context.wrap(self.model)

    def autocast(self) -> AbstractContextManager[None]:
        """Computation in the engine's number format."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.context.device.type, dtype)

    def inputs(self, store: RowStore, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], shape (N, 1, H, W), and labels of some rows on the device."""
        device = self.context.device
        images = store.images(rows_N).to(device, non_blocking=True).float().div_(255)
        return images, store.labels_N[rows_N].to(device)

    def train_epoch(
        self,
        config: FitConfig,
        store: RowStore,
        plan: BatchPlan,
        epoch: int,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        ema: Ema | None,
        part: EpochPart,
    ) -> Iterator[None]:
        """One pass over the training part, from where ``part`` ends; yields after every step.

        Raises:
            NonFiniteLossError: before the step that the loss would have spoiled.
        """
        self.model.train()
        for batch in plan.epoch(epoch, self.context.rank, part.steps):
            optimizer.zero_grad(set_to_none=True)
            before = part.totals.loss_sum.clone()
            self._accumulate(config, store, batch, epoch, part.totals)
            self._step(config, optimizer)
            schedule.step_batch()
            if ema is not None:
                ema.update(self.model)
            part.steps += 1
            loss = float(part.totals.loss_sum - before) / sum(len(rows) for _, rows in batch.micro)
            self.context.emit(
                {"kind": "step", "epoch": epoch + 1, "step": batch.step + 1, "loss": loss}
            )
            yield

    def _accumulate(
        self, config: FitConfig, store: RowStore, batch: Batch, epoch: int, totals: Totals
    ) -> None:
        """Add the gradients of this rank's micro-batches."""
        scale = self.context.world_size / batch.rows
        for position, (number, rows_N) in enumerate(batch.micro):
            seed = _seed(config.train.seed, epoch, batch.step, number)
            images, labels_N = self.inputs(store, rows_N)
            seeds_N = row_seeds(config.train.seed, epoch, rows_N).to(images.device)
            images = augment(images, config.augment, seeds_N)
            targets_NK = one_hot(labels_N, self.classes, config.loss.label_smoothing)
            generator = torch.Generator().manual_seed(seed)
            images, targets_NK = mixup(images, targets_NK, config.train.mixup_alpha, generator)
            last = position == len(batch.micro) - 1
            with self._gradients(sync=last), _dropout_seed(seed, images.device), self.autocast():
                logits_NK = self._wrapped(images.contiguous(memory_format=torch.channels_last))
                losses_N = self._loss(logits_NK.float(), targets_NK)
                loss = losses_N.sum() * scale
                if not torch.isfinite(loss):
                    raise NonFiniteLossError(_non_finite(epoch, batch, store.ids(rows_N)))
                self.scaler.scale(loss).backward()
            totals.add(losses_N, logits_NK, labels_N)

    def _step(self, config: FitConfig, optimizer: torch.optim.Optimizer) -> None:
        if config.optim.clip_norm is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()

    def _gradients(self, sync: bool) -> AbstractContextManager[None]:
        if sync or not isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    @torch.inference_mode()
    def evaluate(self, store: RowStore) -> Totals:
        """Loss and confusion over a part, without augmentation and label smoothing."""
        totals = Totals.zero(self.classes, self.context.device)
        for images, labels_N, _ in self.evaluation_batches(store):
            with self.autocast():
                logits_NK = self.model(images).float()
            targets_NK = one_hot(labels_N, self.classes, 0.0)
            totals.add(self._loss(logits_NK, targets_NK), logits_NK, labels_N)
        return totals.reduced(self.context)

    def evaluation_batches(self, store: RowStore) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and row numbers of this rank's rows, in order."""
        self.model.eval()
        size = self.context.world_size
        batch = evaluation_batch(store.size_px)
        for rows_N in evaluation_rows(len(store), self.context.rank, size, batch):
            images, labels_N = self.inputs(store, rows_N)
            yield images.contiguous(memory_format=torch.channels_last), labels_N, rows_N


def _seed(*numbers: int) -> int:
    return int(digest(numbers)[:15], 16)


@contextmanager
def _dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout takes no generator: seed the global one for a block and put it back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _non_finite(epoch: int, batch: Batch, image_ids: list[str]) -> str:
    return (
        f"the loss is not finite in epoch {epoch + 1}, step {batch.step + 1}; images: "
        f"{', '.join(image_ids)}. Lower optim.lr, set optim.clip_norm or train in fp32."
    )
