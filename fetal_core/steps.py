"""Forward and backward passes over an epoch, on one rank of any number."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

from fetal_core.augment import augment, row_seeds
from fetal_core.batches import Batch, BatchPlan, evaluation_batch, evaluation_rows
from fetal_core.config import digest
from fetal_core.ema import Ema
from fetal_core.errors import ConfigError, NonFiniteLossError
from fetal_core.fit_config import FitConfig, Precision
from fetal_core.losses import Loss, mixup, one_hot
from fetal_core.model import PlaneClassifier
from fetal_core.optim import Schedule
from fetal_core.rows import RowStore
from fetal_core.run_context import RunContext
from fetal_core.totals import EpochPart, Totals

logger = logging.getLogger(__name__)

_FORMATS = ("fp32", "bf16", "fp16")
_REMEDY = "Lower optim.lr, set optim.clip_norm or train in fp32."


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

    @cached_property
    def _momenta(self) -> list[tuple[nn.modules.batchnorm._BatchNorm, float]]:
        """Layers with statistics and how fast these follow one micro-batch."""
        layers = (m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        return [(layer, layer.momentum) for layer in layers if layer.momentum is not None]

    def autocast(self) -> AbstractContextManager[None]:
        """Computation in the engine's number format."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.context.device.type, dtype)

    def check_precision(self) -> None:
        """Ranks that compute in different number formats would spoil each other's gradients.

        Raises:
            ConfigError: they do; on all ranks.
        """
        own = torch.zeros(len(_FORMATS), device=self.context.device)
        own[_FORMATS.index(self.precision)] = 1
        ranks = self.context.all_sum(own).tolist()
        found = [name for name, number in zip(_FORMATS, ranks, strict=True) if number]
        if len(found) > 1:
            raise ConfigError(
                f"the workers' machines compute in {' and '.join(found)}, each by itself. Set "
                "train.precision to one that all of them can."
            )

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

        With ``train.non_finite`` = ``skip`` a batch whose loss or gradient is not finite on any
        rank changes nothing but the schedule.

        Raises:
            NonFiniteLossError: before the step that the loss would have spoiled; with ``skip``,
                once more than ``most_skipped`` batches of the epoch had to be left out.
        """
        self.model.train()
        skips = config.train.non_finite == "skip"
        for batch in plan.epoch(epoch, self.context.rank, part.steps):
            optimizer.zero_grad(set_to_none=True)
            before = part.totals.copy()
            buffers = [buffer.clone() for buffer in self.model.buffers()] if skips else []
            self._set_momentum(batch)
            fault = self._accumulate(config, store, batch, epoch, part.totals)
            spoilt = self._anywhere(fault, skips)
            if not spoilt:
                fault = self._gradient_fault(config, optimizer, store, batch)
            if spoilt or fault:
                if not skips:
                    raise NonFiniteLossError(f"{_where(epoch, batch)}: {fault}. {_REMEDY}")
                part.totals = before
                self._leave_out(plan, batch, epoch, part, fault, buffers)
            else:
                self.scaler.step(optimizer)
                self.scaler.update()
                if ema is not None:
                    ema.update(self.model)
                self._tell(batch, epoch, float(part.totals.loss_sum - before.loss_sum))
            schedule.step_batch()
            part.steps += 1
            yield

    def _set_momentum(self, batch: Batch) -> None:
        """Let batch norm's statistics move as far by this rank's micro-batches as by all."""
        times = batch.pieces / max(1, len(batch.micro))
        for norm, momentum in self._momenta:
            norm.momentum = momentum if times == 1 else 1 - (1 - momentum) ** times

    def _accumulate(
        self, config: FitConfig, store: RowStore, batch: Batch, epoch: int, totals: Totals
    ) -> str:
        """Add the gradients of this rank's micro-batches; returns what is wrong with a loss."""
        scale = self.context.world_size / batch.rows
        fault = ""
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
                    fault = fault or f"the loss is not finite; images: {_listed(store, rows_N)}"
                    if config.train.non_finite == "stop":
                        return fault
                # Also of a loss that is not finite: the other ranks wait for these gradients.
                self.scaler.scale(loss).backward()
            totals.add(losses_N, logits_NK, labels_N)
        return fault

    def _gradient_fault(
        self, config: FitConfig, optimizer: torch.optim.Optimizer, store: RowStore, batch: Batch
    ) -> str:
        """Clip the gradients; returns what is wrong with them, the same on all ranks."""
        parameters = list(self.model.parameters())
        if config.optim.clip_norm is not None:
            self.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        else:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        # In 16 bits the scaler leaves out such a step and lowers its scale.
        if self.scaler.is_enabled() or torch.isfinite(norm):
            return ""
        rows_N = torch.cat([rows_N for _, rows_N in batch.micro])
        return f"the gradient is not finite; images: {_listed(store, rows_N)}"

    def _anywhere(self, fault: str, skips: bool) -> bool:
        """Whether any rank has a fault; one that has stops at once where none is left out."""
        if not skips or self.context.world_size == 1:
            return bool(fault)
        found = torch.tensor(float(bool(fault)), device=self.context.device)
        return bool(self.context.all_sum(found))

    def _leave_out(
        self,
        plan: BatchPlan,
        batch: Batch,
        epoch: int,
        part: EpochPart,
        fault: str,
        buffers: list[Tensor],
    ) -> None:
        """Go back to before the batch, unless there have been too many such."""
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        part.skipped += 1
        fault = fault or "the loss of another worker's images is not finite; its log names them"
        logger.warning("%s: %s; left out", _where(epoch, batch), fault)
        limit = most_skipped(plan.steps)
        if part.skipped > limit:
            raise NonFiniteLossError(
                f"{part.skipped} of {plan.steps} batches of epoch {epoch + 1} had to be left out, "
                f"more than {limit}. {_where(epoch, batch)}: {fault}. {_REMEDY}"
            )
        self.context.emit(
            {"kind": "skipped", "epoch": epoch + 1, "step": batch.step + 1, "fault": fault}
        )

    def _tell(self, batch: Batch, epoch: int, loss_sum: float) -> None:
        loss = loss_sum / sum(len(rows) for _, rows in batch.micro)
        self.context.emit(
            {"kind": "step", "epoch": epoch + 1, "step": batch.step + 1, "loss": loss}
        )

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


def most_skipped(steps: int) -> int:
    """How many batches of an epoch may be left out: a tenth, or three if that is more."""
    return min(max(3, math.ceil(steps / 10)), steps - 1)


def _where(epoch: int, batch: Batch) -> str:
    return f"epoch {epoch + 1}, step {batch.step + 1}"


def _listed(store: RowStore, rows_N: Tensor) -> str:
    return ", ".join(store.ids(rows_N))
