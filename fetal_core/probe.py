"""Linear probing: the backbone's features are computed once, a linear head is trained on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fetal_core.batches import BatchPlan
from fetal_core.errors import NonFiniteLossError
from fetal_core.fit_config import FitConfig
from fetal_core.losses import Loss, make_loss, one_hot
from fetal_core.optim import l2_penalty, make_optimizer, make_schedule
from fetal_core.rows import RowStore
from fetal_core.steps import StepEngine
from fetal_core.totals import Totals

_LBFGS_ROUNDS = 10


@dataclass(frozen=True)
class Features:
    """A part as the frozen backbone sees it.

    Attributes:
        features_NF: float32.
        labels_N: int64.
    """

    features_NF: Tensor
    labels_N: Tensor


@torch.inference_mode()
def extract(engine: StepEngine, store: RowStore) -> Features:
    """Features of all rows of a part, without augmentation, on every rank."""
    model, context = engine.model, engine.context
    features_NF = torch.zeros(len(store), model.feature_dim, device=context.device)
    for images, _, rows_N in engine.evaluation_batches(store):
        with engine.autocast():
            features_NF[rows_N.to(context.device)] = model.features(images).float()
    # Each rank has filled its own rows; the others are zero.
    return Features(context.all_sum(features_NF), store.labels_N.to(context.device))


def train_head(
    config: FitConfig, train: Features, val: Features, target: nn.Linear, epochs: int
) -> list[dict[str, Any]]:
    """Train ``target`` on standardised features and keep the weights of the best epoch.

    ``lbfgs`` solves the convex problem of mean loss plus ``weight_decay`` / 2 times the squared
    norm of the weights on the whole part at once, which is scikit-learn's logistic regression with
    C = 1 / (rows * weight_decay); the others take ``epochs`` passes.

    Returns:
        One record for each epoch.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    mean_F = train.features_NF.mean(0)
    std_F = train.features_NF.std(0, correction=0).clamp(min=1e-6)
    train = Features((train.features_NF - mean_F) / std_F, train.labels_N)
    val = Features((val.features_NF - mean_F) / std_F, val.labels_N)
    classes = target.out_features
    loss = make_loss(config.loss, torch.bincount(train.labels_N, minlength=classes).tolist())
    loss.to(train.labels_N.device)
    head = nn.Linear(target.in_features, classes, device=train.labels_N.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    solve = _solve if config.optim.name == "lbfgs" else _descend
    history: list[dict[str, Any]] = []
    best, best_score = {}, float("-inf")
    for record in solve(config, head, loss, train, epochs):
        record["epoch"] = len(history) + 1
        record |= {f"val_{key}": x for key, x in _totals(head, loss, val).as_dict().items()}
        score = config.train.score(record)
        record["is_best"] = float(score > best_score)
        if record["is_best"]:
            best_score = score
            best = {key: value.clone() for key, value in head.state_dict().items()}
        history.append(record)
    head.load_state_dict(best)
    _fold(head, mean_F, std_F, target)
    return history


def _descend(
    config: FitConfig, head: nn.Linear, loss: Loss, train: Features, epochs: int
) -> Iterator[dict[str, Any]]:
    seed = config.train.seed
    plan = BatchPlan(len(train.labels_N), config.train.batch_size, None, 1, seed)
    optimizer = make_optimizer(head, config.optim)
    schedule = make_schedule(optimizer, config.schedule, epochs, plan.steps)
    for epoch in range(epochs):
        started, lr = time.monotonic(), schedule.lr
        totals = Totals.zero(head.out_features, train.labels_N.device)
        for batch in plan.epoch(epoch, 0):
            rows_N = batch.micro[0][1]
            optimizer.zero_grad(set_to_none=True)
            losses_N, logits_NK = _losses(config, head, loss, train, rows_N)
            value = losses_N.mean()
            _check_finite(value)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step_batch()
            totals.add(losses_N, logits_NK, train.labels_N[rows_N])
        schedule.step_epoch(totals.loss)
        yield _record(totals, lr, started)


def _solve(
    config: FitConfig, head: nn.Linear, loss: Loss, train: Features, epochs: int
) -> Iterator[dict[str, Any]]:
    optimizer = make_optimizer(head, config.optim)
    started = time.monotonic()

    def closure() -> float:
        optimizer.zero_grad(set_to_none=True)
        losses_N, _ = _losses(config, head, loss, train, slice(None))
        value = losses_N.mean() + l2_penalty(head, config.optim.weight_decay)
        _check_finite(value)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    for _ in range(_LBFGS_ROUNDS):
        optimizer.step(closure)
    yield _record(_totals(head, loss, train), 1.0, started)


def _losses(
    config: FitConfig, head: nn.Linear, loss: Loss, part: Features, rows: Tensor | slice
) -> tuple[Tensor, Tensor]:
    logits_NK = head(part.features_NF[rows])
    targets_NK = one_hot(part.labels_N[rows], head.out_features, config.loss.label_smoothing)
    losses_N: Tensor = loss(logits_NK, targets_NK)
    return losses_N, logits_NK


@torch.no_grad()
def _totals(head: nn.Linear, loss: Loss, part: Features) -> Totals:
    totals = Totals.zero(head.out_features, part.labels_N.device)
    logits_NK = head(part.features_NF)
    totals.add(loss(logits_NK, one_hot(part.labels_N, head.out_features)), logits_NK, part.labels_N)
    return totals


def _record(totals: Totals, lr: float, started: float) -> dict[str, Any]:
    seconds = time.monotonic() - started
    record: dict[str, Any] = {f"train_{key}": value for key, value in totals.as_dict().items()}
    return record | {"lr": lr, "epoch_s": seconds}


def _check_finite(value: Tensor) -> None:
    if not torch.isfinite(value):
        raise NonFiniteLossError("the loss of the linear head is not finite. Lower optim.lr.")


@torch.no_grad()
def _fold(head: nn.Linear, mean_F: Tensor, std_F: Tensor, target: nn.Linear) -> None:
    """Put the standardisation of the features into the weights."""
    target.weight.copy_(head.weight / std_F)
    target.bias.copy_(head.bias - target.weight @ mean_F)
