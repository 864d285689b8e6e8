"""One update: how a batch is split, what is averaged, and where its random numbers come from."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drift_policy import Policy
from drift_policy.demonstrated import PositiveNoise
from drift_policy.encoders import IMAGE_BACKBONES
from drift_policy.errors import ConfigurationError
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import MlpConfig
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import learning_rate, step_generator
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import PolicyUpdate
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.image_task import BATCH_NORM
from tests.helpers.policies import tiny_batch, tiny_policy

POLICY = tiny_policy("regression")
SIZES = st.integers(1, 4)


def seat(rank: int, size: int) -> Processes:
    """One of several processes that do not talk to each other: enough to see what each would compute."""
    processes = Processes(torch.device("cpu"))
    processes.rank, processes.size = rank, size
    return processes


def update_of(policy: Policy, *, rank: int = 0, size: int = 1, seed: int = 0, **changes: Any) -> PolicyUpdate:
    config = TrainerConfig(**({"num_steps": 100, "warmup_steps": 0, "batch_size": 8} | changes))
    return PolicyUpdate(policy, Ema(policy, config.ema_decay), config, seat(rank, size), seed)


def weights(policy: Policy) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def select(batch: Any, rows: slice) -> Any:
    return batch[rows] if isinstance(batch, Tensor) else {key: select(value, rows) for key, value in batch.items()}


@given(SIZES, SIZES, st.integers(1, 5))
def test_processes_and_parts_share_a_batch_exactly(size: int, parts: int, share: int) -> None:
    split = {"batch_size": size * parts * share, "gradient_accumulation_steps": parts}
    windows = np.random.default_rng(0).permutation(1000)[: split["batch_size"]]
    updates = [update_of(POLICY, rank=rank, size=size, **split) for rank in range(size)]
    alone = list(update_of(POLICY, **split).parts(windows))
    shared = [list(update.parts(windows)) for update in updates]
    for part in range(parts):
        # A part is the same windows in the same order for any number of processes: so are its statistics.
        np.testing.assert_array_equal(np.concatenate([own[part] for own in shared]), alone[part])
        for update, own in zip(updates, shared, strict=True):
            np.testing.assert_array_equal(windows[update.rows(part)], own[part])
            assert len(own[part]) == share
    np.testing.assert_array_equal(np.concatenate(alone), windows)
    assert all(len(own) == parts for own in shared)


@pytest.mark.parametrize("head", ["drift", "regression"])
def test_metrics_and_gradients_of_parts_are_averaged(head: str) -> None:
    policy = tiny_policy(head)
    batch = tiny_batch(policy, 8)
    update = update_of(policy, gradient_accumulation_steps=2, gradient_clip=None)
    reference = deepcopy(policy)
    draws = reference.draw(8, step_generator(5, 0))
    halves = [slice(0, 4), slice(4, 8)]
    expected = [reference.compute_loss(select(batch, half), select(draws, half)) for half in halves]
    (sum(loss for loss, _ in expected) / 2).backward()  # type: ignore[union-attr]
    norm = torch.stack([parameter.grad.norm() for parameter in reference.parameters()]).norm()  # type: ignore[union-attr]

    metrics = update(5, iter([select(batch, half) for half in halves]))
    torch.testing.assert_close(metrics["loss"], (expected[0][0] + expected[1][0]).detach() / 2)
    torch.testing.assert_close(metrics["action_mse"], (expected[0][1]["action_mse"] + expected[1][1]["action_mse"]) / 2)
    torch.testing.assert_close(metrics["gradient_norm"], norm)
    assert metrics.keys() == {*expected[0][1], "loss", "gradient_norm"}
    assert all(parameter.grad is None for parameter in policy.parameters()), "the next update begins without any"


def test_each_process_gets_its_rows_of_the_noise() -> None:
    policy = tiny_policy("drift")
    batch = tiny_batch(policy, 8)
    draws = policy.draw(8, step_generator(2, 0))
    for rank, rows in enumerate([slice(0, 4), slice(4, 8)]):
        expected, _ = deepcopy(policy).compute_loss(select(batch, rows), select(draws, rows))
        metrics = update_of(deepcopy(policy), rank=rank, size=2)(2, iter([select(batch, rows)]))
        torch.testing.assert_close(metrics["loss"], expected.detach())


def test_dropout_is_a_function_of_step_seed_and_process() -> None:
    policy = tiny_policy("regression", network_config=MlpConfig(width=16, depth=1, dropout=0.5))

    def after(step: int, rank: int = 0, seed: int = 0) -> Tensor:
        """Train a copy on a batch that is the same for every step and process, from another random state each time."""
        copy = deepcopy(policy)
        torch.seed()
        update_of(copy, rank=rank, size=2, seed=seed)(step, iter([tiny_batch(policy, 4)]))
        return weights(copy)

    first = after(step=3)
    assert torch.equal(first, after(step=3))
    for other in (after(step=4), after(step=3, rank=1), after(step=3, seed=1)):
        assert (first - other).abs().max() > 1e-5
    assert torch.equal(after(step=3, rank=1), after(step=3, rank=1))


@pytest.mark.parametrize("rank", [0, 1])
def test_dropout_does_not_repeat_the_numbers_of_noise_and_crops(rank: int) -> None:
    with torch.random.fork_rng():
        update_of(deepcopy(POLICY), rank=rank, size=2)(3, iter([tiny_batch(POLICY, 4)]))
        assert torch.initial_seed() != step_generator(3, 0).initial_seed()


def test_clipping_limits_the_gradient_but_not_its_report() -> None:
    free, clipped = deepcopy(POLICY), deepcopy(POLICY)
    batch = tiny_batch(POLICY, 8)
    metrics = update_of(free, gradient_clip=None)(0, iter([batch]))
    limit = float(metrics["gradient_norm"]) / 1e6
    update = update_of(clipped, gradient_clip=limit)
    torch.testing.assert_close(update(0, iter([batch]))["gradient_norm"], metrics["gradient_norm"])
    moments = [state["exp_avg"].norm() for state in update.optimizer.state.values()]
    torch.testing.assert_close(torch.stack(moments).norm(), torch.tensor(0.1 * limit), rtol=1e-3, atol=0)


def test_the_schedule_reaches_the_weights() -> None:
    """With the same gradient, the first step of AdamW is as long as its learning rate."""
    config = {"learning_rate": 0.01, "weight_decay": 0.0, "warmup_steps": 10}
    batch, changes = tiny_batch(POLICY, 8), []
    for step in (0, 50):
        policy = deepcopy(POLICY)
        update_of(policy, **config)(step, iter([batch]))
        changes.append(weights(policy) - weights(POLICY))
    ratio = learning_rate(50, TrainerConfig(num_steps=100, **config)) / learning_rate(0, TrainerConfig(**config))  # type: ignore[arg-type]  # a mapping
    assert ratio == pytest.approx(5.0)  # half of the peak, after a tenth of it
    torch.testing.assert_close(changes[1], ratio * changes[0], rtol=1e-3, atol=1e-6)
    assert float(changes[0].abs().max()) == pytest.approx(1e-3, rel=1e-2)


def test_the_settings_of_the_optimiser_are_those_of_the_trainer() -> None:
    update = update_of(deepcopy(POLICY), betas=[0.8, 0.95], weight_decay=0.3, learning_rate=0.01)
    (group,) = update.optimizer.param_groups
    assert (group["betas"], group["weight_decay"], float(group["lr"])) == ((0.8, 0.95), 0.3, pytest.approx(0.01))
    update(50, iter([tiny_batch(POLICY, 8)]))
    assert float(group["lr"]) == pytest.approx(0.005)


def test_the_noise_of_an_update_is_that_of_the_seed() -> None:
    policy = tiny_policy("drift")
    batch = tiny_batch(policy, 8)
    for seed in (0, 1):
        expected, _ = deepcopy(policy).compute_loss(batch, policy.draw(8, step_generator(5, seed)))
        metrics = update_of(deepcopy(policy), seed=seed)(5, iter([batch]))
        torch.testing.assert_close(metrics["loss"], expected.detach(), rtol=1e-6, atol=0)


def test_gathering_the_average_copies_changed_buffers_and_keeps_averaged_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(IMAGE_BACKBONES, "batch_norm", BATCH_NORM)
    policy = tiny_image_policy(image_backbone_name="batch_norm", image_backbone=BATCH_NORM.config())
    update = update_of(policy, ema_decay=0.5, learning_rate=0.1)
    averaged = update.ema.policy
    name = "encoder.backbones.image.1.running_mean"
    for step in range(3):
        update(step, iter([tiny_batch(policy, 8, seed=step)]))
    assert not torch.equal(averaged.state_dict()[name], policy.state_dict()[name])
    weights_before = weights(averaged)
    update.ema.gather(policy)
    assert torch.equal(averaged.state_dict()[name], policy.state_dict()[name])
    assert int(averaged.state_dict()["encoder.backbones.image.1.num_batches_tracked"]) == 3
    assert torch.equal(weights(averaged), weights_before)
    assert not torch.equal(weights(averaged), weights(policy))
    assert not averaged.training and policy.training


@pytest.mark.parametrize("setting", ["observation_noise", "action_noise"])
def test_noise_is_a_setting_of_the_trainer(setting: str) -> None:
    batch = tiny_batch(POLICY, 8)
    losses = [update_of(deepcopy(POLICY), **{setting: std})(0, iter([batch]))["loss"] for std in (0.0, 0.0, 0.2, 0.2)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[2], losses[3])
    assert not torch.equal(losses[0], losses[2])


def test_action_noise_is_that_of_the_rows_of_a_process() -> None:
    batch = tiny_batch(POLICY, 8)
    draws = POLICY.draw(8, step_generator(3, 0), action_noise=0.2)
    for rank, rows in enumerate([slice(0, 4), slice(4, 8)]):
        expected, _ = deepcopy(POLICY).compute_loss(select(batch, rows), select(draws, rows))
        update = update_of(deepcopy(POLICY), rank=rank, size=2, action_noise=0.2)
        torch.testing.assert_close(update(3, iter([select(batch, rows)]))["loss"], expected.detach())


def test_copies_of_the_demonstrations_are_those_of_the_settings() -> None:
    policy = tiny_policy("drift")
    batch, copies = tiny_batch(policy, 8), PositiveNoise(copies=2, deviation=0.1, steps=3.0)
    expected, _ = deepcopy(policy).compute_loss(batch, policy.draw(8, step_generator(5, 0), positive_noise=copies))
    update = update_of(deepcopy(policy), positive_copies=2, positive_noise=0.1, positive_noise_steps=3.0)
    torch.testing.assert_close(update(5, iter([batch]))["loss"], expected.detach())


@pytest.mark.parametrize("parts", [1, 2])
def test_a_scheduled_weight_is_that_of_the_step_in_every_part_and_process(parts: int) -> None:
    head = DriftHeadConfig(3, kernel="energy", regression_weight=1.0, regression_steps=100)
    policy = tiny_policy("drift", head_config=head)
    batch = tiny_batch(policy, 4)
    split = {"batch_size": 8, "gradient_accumulation_steps": parts}
    windows = [select(batch, slice(0, 4 // parts))] * parts
    for step, weight in ((0, 1.0), (25, 0.75), (99, 0.01), (300, 0.0)):
        for rank in (0, 1):
            metrics = update_of(deepcopy(policy), rank=rank, size=2, **split)(step, iter(windows))
            assert float(metrics["regression_weight"]) == pytest.approx(weight, abs=1e-7)


def test_negative_noise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.action_noise must not be negative, but is -0\.1"):
        TrainerConfig(action_noise=-0.1)
