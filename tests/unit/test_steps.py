"""Steps of an epoch: exact accumulation, refusal of non-finite losses, totals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss
from torch import Tensor, nn

from builders import (
    CLASSES,
    SIZE_PX,
    expect_equal_state,
    fit_config,
    kept,
    overflow_on_white,
    shard_table,
    spoilt_data,
    toy_data,
    toy_images,
    toy_store,
)
from fetal_core.batches import BatchPlan
from fetal_core.checkpoint import load_weights
from fetal_core.ema import Ema
from fetal_core.errors import ConfigError, NonFiniteLossError
from fetal_core.fit_config import FitConfig
from fetal_core.losses import Loss
from fetal_core.model import ModelConfig, PlaneClassifier, build
from fetal_core.optim import make_optimizer, make_schedule
from fetal_core.rows import RowStore
from fetal_core.run_context import Event, LocalContext
from fetal_core.steps import StepEngine, most_skipped, resolve_precision
from fetal_core.totals import EpochPart, Totals
from fetal_core.train import fit


def classifier(seed: int = 0) -> PlaneClassifier:
    config = ModelConfig(architecture="squeezenet1_1", weights="none")
    return build(config, len(CLASSES), 0.3, 0.3, seed, SIZE_PX)


def run_epoch(engine: StepEngine, config: FitConfig, store: RowStore) -> Totals:
    train = config.train
    ranks = engine.context.world_size
    plan = BatchPlan(len(store), train.batch_size, train.micro_batch, ranks, train.seed)
    optimizer = make_optimizer(engine.model, config.optim)
    schedule = make_schedule(optimizer, config.schedule, 1, plan.steps)
    part = EpochPart(Totals.zero(engine.classes, engine.context.device))
    for _ in engine.train_epoch(config, store, plan, 0, optimizer, schedule, None, part):
        pass
    return part.totals.reduced(engine.context)


def weights_after_one_step(folder: Path, micro_batch: int | None) -> dict[str, Tensor]:
    config = fit_config(
        augment={"rotation_deg": 20, "crop": 0.2, "speckle": 0.1},
        loss={"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0, 4.0)},
        optim={"lr": 0.1},
        train={"batch_size": 10, "micro_batch": micro_batch},
    )
    context = LocalContext(folder)
    fit(config, toy_data(10, 4), context)
    model = classifier()
    load_weights(kept(folder, "latest"), model)
    return model.state_dict()


def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    whole = weights_after_one_step(tmp_path / "whole", None)
    start = classifier().state_dict()
    assert any(not torch.equal(whole[key], start[key]) for key in whole)
    for micro_batch in (4, 1):
        parts = weights_after_one_step(tmp_path / str(micro_batch), micro_batch)
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_non_finite_loss_stops_before_the_step_and_names_the_images(
    tmp_path: Path, micro_batch: int | None
) -> None:
    model = classifier()
    model.register_forward_hook(overflow_on_white)
    engine = StepEngine(model, Loss("cross_entropy"), LocalContext(tmp_path), "fp32")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = fit_config(optim={"lr": 0.1}, train={"micro_batch": micro_batch})
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1.*i005") as caught:
        run_epoch(engine, config, spoilt_data(8).train)
    assert ("i004" in str(caught.value)) == (micro_batch is None)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, clip_norm: float | None
) -> None:
    model = classifier()
    # The loss is zero, and so finite, where the root's slope is not.
    model.register_forward_hook(lambda module, inputs, logits_NK: (logits_NK * 0).sqrt())
    engine = StepEngine(model, Loss("cross_entropy"), LocalContext(tmp_path), "fp32")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = fit_config(optim={"lr": 0.1, "clip_norm": clip_norm})
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: the gradient .*i005"):
        run_epoch(engine, config, spoilt_data(8).train)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


class OneOfContext(LocalContext):
    """The first of several ranks whose images are all the same."""

    def __init__(self, folder: Path, world_size: int) -> None:
        super().__init__(folder)
        self.world_size = world_size


class BesideBfloat16(OneOfContext):
    """The first of two ranks, of which the other computes in bfloat16."""

    def all_sum(self, value: Tensor) -> Tensor:
        return value + torch.tensor([0.0, 1.0, 0.0])


def test_ranks_in_different_number_formats_are_refused(tmp_path: Path) -> None:
    context = BesideBfloat16(tmp_path, 2)
    StepEngine(classifier(), Loss("cross_entropy"), context, "bf16").check_precision()
    with pytest.raises(ConfigError, match="compute in fp32 and bf16"):
        StepEngine(classifier(), Loss("cross_entropy"), context, "fp32").check_precision()


@pytest.mark.parametrize("world_size", [2, 4])
def test_statistics_of_batch_norm_follow_as_fast_on_any_number_of_ranks(
    tmp_path: Path, world_size: int
) -> None:
    images_NHW = np.repeat(toy_images(np.zeros(1, int), 3), 24, axis=0)
    ids = [f"i{row:03d}" for row in range(24)]
    store = RowStore([shard_table(ids, np.zeros(24, int), images_NHW)], SIZE_PX)
    config = fit_config(optim={"lr": 1e-9}, train={"batch_size": 8, "micro_batch": 2})

    def statistics(ranks: int) -> dict[str, Tensor]:
        network = ModelConfig(architecture="shufflenet_v2_x0_5", weights="none")
        model = build(network, len(CLASSES), 0.3, 0.3, 0, SIZE_PX)
        context = OneOfContext(tmp_path, ranks)
        run_epoch(StepEngine(model, Loss("cross_entropy"), context, "fp32"), config, store)
        return {key: value for key, value in model.state_dict().items() if "running_" in key}

    alone = statistics(1)
    for key, value in statistics(world_size).items():
        torch.testing.assert_close(value, alone[key], atol=1e-5, rtol=1e-4)


SKIPPING = {
    "model": {"architecture": "shufflenet_v2_x0_5"},
    "optim": {"lr": 0.01, "momentum": 0.9},
    "train": {"batch_size": 2, "non_finite": "skip", "ema_decay": 0.9},
}


def test_a_batch_left_out_changes_nothing_but_the_schedule(tmp_path: Path) -> None:
    config, store = fit_config(**SKIPPING), spoilt_data(8).train
    states, parts = [], []
    for hooked in (True, False):
        model = build(config.model, len(CLASSES), 0.3, 0.3, 0, SIZE_PX)
        if hooked:
            model.register_forward_hook(overflow_on_white)
        events: list[Event] = []
        context = LocalContext(tmp_path, on_event=events.append)
        engine = StepEngine(model, Loss("cross_entropy"), context, "fp32")
        plan = BatchPlan(len(store), 2, None, 1, 0)
        (bad,) = [batch.step for batch in plan.epoch(0, 0) if 5 in batch.micro[0][1]]
        optimizer = make_optimizer(model, config.optim)
        schedule = make_schedule(optimizer, config.schedule, 1, plan.steps)
        ema = Ema(model, config.train.ema_decay)
        part = EpochPart(Totals.zero(len(CLASSES), context.device))
        steps = engine.train_epoch(config, store, plan, 0, optimizer, schedule, ema, part)
        if hooked:
            list(steps)
            told = [event for event in events if event["kind"] == "skipped"]
            assert [event["step"] for event in told] == [bad + 1]
            assert "i005" in told[0]["fault"]
            assert part.skipped == 1
        else:
            for _ in range(bad):
                next(steps)
            part.steps = bad + 1
            list(engine.train_epoch(config, store, plan, 0, optimizer, schedule, ema, part))
            assert part.skipped == 0
        states.append([model.state_dict(), ema.state_dict(), optimizer.state_dict()])
        parts.append(part.totals.as_dict())
        assert part.steps == plan.steps
        assert part.totals.confusion_KK.sum() == len(store) - 2
    expect_equal_state(*states)
    assert parts[0] == parts[1]


def test_too_many_batches_left_out_stop_the_run(tmp_path: Path) -> None:
    config = fit_config(
        optim={"lr": 1e30}, train={"batch_size": 2, "epochs": 2, "non_finite": "skip"}
    )
    with pytest.raises(NonFiniteLossError, match=r"4 of 12 batches of epoch 1 .* more than 3"):
        fit(config, toy_data(), LocalContext(tmp_path))


def test_the_limit_of_batches_left_out_is_a_tenth_but_never_all() -> None:
    assert [most_skipped(steps) for steps in (1, 2, 4, 30, 100, 1001)] == [0, 1, 3, 3, 10, 101]


def test_diverging_training_is_stopped_in_the_step_that_shows_it(tmp_path: Path) -> None:
    config = fit_config(optim={"lr": 1e30}, train={"batch_size": 8})
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 2: .*images: i0.*optim\.lr"):
        fit(config, toy_data(), LocalContext(tmp_path))


def test_diverged_model_is_not_reported_as_an_epoch(tmp_path: Path) -> None:
    config = fit_config(optim={"lr": 1e30}, train={"batch_size": 24})
    context = LocalContext(tmp_path)
    with pytest.raises(NonFiniteLossError, match="validation loss is not finite after epoch 1"):
        fit(config, toy_data(), context)
    assert context.checkpoints.location("latest") is None


def test_totals_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.randn(50, 4, generator=generator)
    labels_N = torch.randint(0, 3, (50,), generator=generator)
    targets_NK = nn.functional.one_hot(labels_N, 4).float()
    totals = Totals.zero(4, torch.device("cpu"))
    for rows in (slice(0, 7), slice(7, 50)):
        losses_N = Loss("cross_entropy")(logits_NK[rows], targets_NK[rows])
        totals.add(losses_N, logits_NK[rows], labels_N[rows])
    probabilities_NK = logits_NK.double().softmax(1).numpy()
    predicted_N = logits_NK.argmax(1)
    found = totals.as_dict()
    assert found["loss"] == pytest.approx(
        log_loss(labels_N, probabilities_NK, labels=range(4)), rel=1e-5
    )
    assert found["accuracy"] == pytest.approx(float((predicted_N == labels_N).float().mean()))
    # The fourth class has no image and does not count.
    expected = f1_score(labels_N, predicted_N, labels=[0, 1, 2], average="macro")
    assert found["macro_f1"] == pytest.approx(expected)


def test_evaluation_is_a_plain_forward_pass_over_all_rows(tmp_path: Path) -> None:
    store, model = toy_store(70, seed=5), classifier()
    engine = StepEngine(model, Loss("cross_entropy"), LocalContext(tmp_path), "fp32")
    found = engine.evaluate(store).as_dict()
    with torch.inference_mode():
        logits_NK = classifier().eval()(store.images(range(70)).float() / 255)
    expected = nn.functional.cross_entropy(logits_NK, store.labels_N)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    hits_N = (logits_NK.argmax(1) == store.labels_N).double()
    assert found["accuracy"] == pytest.approx(float(hits_N.mean()))


def test_an_event_for_each_step_carries_its_mean_loss(tmp_path: Path) -> None:
    events: list[Event] = []
    context = LocalContext(tmp_path, on_event=events.append)
    engine = StepEngine(classifier(), Loss("cross_entropy"), context, "fp32")
    totals = run_epoch(engine, fit_config(train={"micro_batch": 3}), toy_store(20))
    assert [(event["epoch"], event["step"]) for event in events] == [(1, 1), (1, 2), (1, 3)]
    rows = [7, 7, 6]
    mean = sum(n * event["loss"] for n, event in zip(rows, events, strict=True)) / 20
    assert totals.loss == pytest.approx(mean)


def test_precision_asked_for_is_kept_and_auto_is_resolved() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("fp16", cpu) == "fp16"
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    store = toy_store(8)
    losses = [
        StepEngine(classifier(), Loss("cross_entropy"), LocalContext(tmp_path), precision)
        .evaluate(store)
        .loss
        for precision in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
