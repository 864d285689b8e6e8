"""Training with several positives: one is today's training, a resumed run is the whole one, nonsense is refused."""

import csv
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from drift_policy import Policy
from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.neighbours import find_neighbours
from drift_policy.data.normalizer import Normalizer
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import ConfigurationError, UserError
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.positives import add_positives
from drift_policy.training.run import train
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import PolicyUpdate
from tests.helpers import programs
from tests.helpers.image_task import image_training
from tests.helpers.point_task import point_training
from tests.helpers.policies import tiny_batch, tiny_policy
from tests.helpers.pusht_data import random_pusht
from tests.helpers.training_runs import assert_same_state, press_ctrl_c, stop_before_step, tensors_of

QUIET = Console(quiet=True)
KERNELS = pytest.mark.parametrize("kernel", ["affinity", "energy"])
STEPS = pytest.mark.parametrize("per_time_step", [False, True])


def after_an_update(policy: Policy, batch: dict[str, Any]) -> Tensor:
    copy = deepcopy(policy)
    config = TrainerConfig(batch_size=len(batch["action"]), warmup_steps=0)
    PolicyUpdate(copy, Ema(copy, 0.9), config, Processes(torch.device("cpu")), seed=0)(0, iter([batch]))
    return torch.cat([parameter.detach().flatten() for parameter in copy.parameters()])


@KERNELS
@STEPS
def test_the_own_chunk_as_the_only_positive_changes_no_bit(kernel: str, per_time_step: bool) -> None:
    policy = tiny_policy(head_config=DriftHeadConfig(3, kernel=kernel, per_time_step=per_time_step))
    batch = tiny_batch(policy, 8)
    alone = batch | {"positives": batch["action"].unsqueeze(1), "positive_weights": torch.ones(8, 1)}
    assert torch.equal(after_an_update(policy, batch), after_an_update(policy, alone))
    other = tiny_batch(policy, 8, seed=5)["action"]
    both = alone | {"positives": torch.stack([batch["action"], other], 1), "positive_weights": torch.full((8, 2), 0.5)}
    assert not torch.equal(after_an_update(policy, batch), after_an_update(policy, both))


@STEPS
def test_weights_of_the_energy_kernel_average_the_losses_of_single_positives(per_time_step: bool) -> None:
    policy = tiny_policy(head_config=DriftHeadConfig(3, kernel="energy", per_time_step=per_time_step)).double()
    batch, draws = tiny_batch(policy, 4), policy.draw(4, torch.Generator().manual_seed(0))
    batch = {"obs": {"obs": batch["obs"]["obs"].double()}, "action": batch["action"].double()}
    other = tiny_batch(policy, 4, seed=3)["action"].double()
    share = torch.tensor([[0.25, 0.75]], dtype=torch.float64).expand(4, 2)
    both = batch | {"positives": torch.stack([batch["action"], other], dim=1), "positive_weights": share}
    loss, metrics = policy.compute_loss(both, draws)
    own, own_metrics = policy.compute_loss(batch, draws)
    expected = 0.25 * own + 0.75 * policy.compute_loss(batch | {"action": other}, draws)[0]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["action_mse"], own_metrics["action_mse"])  # is about the own chunk alone


@STEPS
def test_every_observation_has_its_own_weights(per_time_step: bool) -> None:
    policy = tiny_policy(head_config=DriftHeadConfig(3, kernel="energy", per_time_step=per_time_step))
    batch, draws = tiny_batch(policy, 4), policy.draw(4, torch.Generator().manual_seed(0))
    batch["positives"] = torch.stack([batch["action"], tiny_batch(policy, 4, seed=3)["action"]], dim=1)
    batch["positive_weights"] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75], [0.5, 0.5]])
    alone = []
    for row in range(4):
        part: dict[str, Any] = {name: value[row : row + 1] for name, value in batch.items() if name != "obs"}
        part["obs"] = {key: value[row : row + 1] for key, value in batch["obs"].items()}
        alone.append(policy.compute_loss(part, {name: value[row : row + 1] for name, value in draws.items()})[0])
    torch.testing.assert_close(policy.compute_loss(batch, draws)[0], torch.stack(alone).mean())


def test_positives_of_a_wrong_shape_or_for_another_head_are_refused() -> None:
    policy = tiny_policy()
    batch = tiny_batch(policy, 4)
    chunks, weights = batch["action"].unsqueeze(1), torch.ones(4, 1)
    for wrong in (
        {"positives": chunks[:, 0], "positive_weights": weights},
        {"positives": chunks[:3], "positive_weights": weights},
        {"positives": chunks[:, :, 1:], "positive_weights": weights},
        {"positives": chunks, "positive_weights": torch.ones(4, 2)},
    ):
        with pytest.raises(ValueError, match=r"batch\['positives'\] must have shape \[4, P, 6, 2\]"):
            policy.compute_loss(batch | wrong)
    regression = tiny_policy("regression")
    with pytest.raises(ValueError, match="drift head alone, not for 'regression'"):
        regression.compute_loss(batch | {"positives": chunks, "positive_weights": weights})


@KERNELS
@pytest.mark.parametrize(
    "positives", [{"neighbours": 4}, {"time_shifts": 2}, {"positive_copies": 3}], ids=lambda chosen: next(iter(chosen))
)
def test_resume_with_several_positives_is_bit_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, positives: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {
        "policy": {
            "head": {"name": "drift", "samples_per_observation": 2, "kernel": kernel},
            "network": {"name": "mlp", "width": 16, "depth": 1},
        },
        "trainer": {"num_steps": 12, "rollout_every": 0},
    }
    one = deepcopy(settings)
    settings["trainer"] |= positives
    whole = train(point_training(tmp_path / "whole", **deepcopy(settings)), [], QUIET)
    stop_before_step(monkeypatch, 7, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 8"):
        train(point_training(tmp_path / "parts", **deepcopy(settings)), [], QUIET)
    torch.manual_seed(12345)
    parts = train(point_training(tmp_path / "parts", **deepcopy(settings), resume=True), [], QUIET)
    assert_same_state(whole, parts)
    alone = tensors_of(train(point_training(tmp_path / "alone", **one), [], QUIET))
    assert any(not torch.equal(alone[name], tensor) for name, tensor in tensors_of(whole).items())


@pytest.mark.parametrize(
    ("positives", "said"),
    [
        (
            ["trainer.neighbours=4", "trainer.neighbour_width=0.3"],
            "nearest  4 chunks attract the samples of an observation: its own, weight 0.",
        ),
        (["trainer.time_shifts=2"], "shifted  5 chunks attract the samples of an observation: its own, weight 0.40, "),
        (["trainer.positive_copies=3"], "copies   4 chunks attract the samples of an observation: its own, and copies"),
    ],
    ids=["neighbours", "time shifts", "copies"],
)
def test_the_program_trains_with_several_positives_and_says_which(
    tmp_path: Path, positives: list[str], said: str
) -> None:
    write_zarr(tmp_path / "pusht.zarr", random_pusht(episodes=3))
    result = programs.run(
        "train_policy.py",
        "task=pusht",
        *programs.SHORT,
        *positives,
        "trainer.rollout_every=0",
        "policy.head.kernel=energy",
        f"data_path={tmp_path}/pusht.zarr",
        f"output={tmp_path}/runs",
        "name=near",
    )
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
    run = tmp_path / "runs" / "pusht" / "near"
    name, value = positives[0].removeprefix("trainer.").split("=")
    assert json.loads((run / "manifest.json").read_text())["config"]["trainer"][name] == int(value)
    with (run / "metrics.csv").open() as file:
        assert all(np.isfinite(float(row["train/loss"])) for row in csv.DictReader(file) if row["train/loss"])


def test_neighbours_are_near_in_the_normalised_numbers_of_all_observed_steps() -> None:
    rng = np.random.default_rng(0)
    data = {
        name: rng.random((60, size)).astype(np.float32) for name, size in {"obs": 5, "state": 3, "action": 2}.items()
    }
    data["state"] *= 100
    columns = {key: [Column(key)] for key in ("obs", "state")}
    steps: dict[str, int] = {"horizon": 6, "n_obs_steps": 2, "n_action_steps": 3}
    windows = WindowDataset(ReplayBuffer(data, np.array([20, 40, 60])), columns, [Column("action")], **steps)
    policy = tiny_policy(observations={"obs": 5, "state": 3}, **steps)
    policy.set_normalizer(Normalizer.fit(windows.stats_arrays()))
    add_positives(windows, policy, TrainerConfig(neighbours=4, neighbour_width=0.3), QUIET)
    obs = windows.batch(np.arange(len(windows)))["obs"]
    seen = torch.cat([policy.normalizer.normalize(key, obs[key]).flatten(1) for key in columns], dim=1)
    expected, _ = find_neighbours(seen, windows.episodes, count=4, width=0.3)
    assert windows.neighbours is not None
    assert torch.equal(windows.neighbours.windows, expected.windows)
    torch.testing.assert_close(windows.neighbours.weights, expected.weights)


def test_neighbours_that_cannot_be_found_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.neighbours=4 works with the drift head alone.*'flow'"):
        flow = {"head": {"name": "flow"}, "network": {"name": "mlp", "width": 16, "depth": 1}}
        train(point_training(tmp_path, policy=flow, trainer={"neighbours": 4}), [], QUIET)
    with pytest.raises(ConfigurationError, match=r"trainer\.neighbours=9999 asks for 9998 windows of other episodes"):
        train(point_training(tmp_path, trainer={"neighbours": 9999}), [], QUIET)
    with pytest.raises(ConfigurationError, match=r"trainer\.neighbours=4 compares observed numbers, but .* an image"):
        train(image_training(tmp_path, trainer={"neighbours": 4, "batch_size": 8}), [], QUIET)
    for wrong in (
        {"neighbours": 0},
        {"neighbour_width": 0.0},
        {"neighbour_width": float("nan")},
        {"positive_noise": 0.0},
    ):
        with pytest.raises(ConfigurationError, match=rf"trainer\.{next(iter(wrong))} must be"):
            TrainerConfig(**wrong)


def test_time_shifts_are_for_the_drift_head_and_are_not_combined_with_neighbours(tmp_path: Path) -> None:
    flow = {"head": {"name": "flow"}, "network": {"name": "mlp", "width": 16, "depth": 1}}
    with pytest.raises(ConfigurationError, match=r"trainer\.time_shifts=2 works with the drift head.*time_shifts=0"):
        train(point_training(tmp_path, policy=flow, trainer={"time_shifts": 2}), [], QUIET)
    with pytest.raises(
        ConfigurationError, match=r"trainer\.neighbours=4 and trainer\.time_shifts=2 cannot be combined"
    ):
        TrainerConfig(neighbours=4, time_shifts=2)
    with pytest.raises(ConfigurationError, match=r"trainer\.time_shifts must not be negative"):
        TrainerConfig(time_shifts=-1)


def test_time_shifts_are_found_with_cameras_too(tmp_path: Path) -> None:
    settings = {"time_shifts": 2, "batch_size": 8, "num_steps": 1, "rollout_every": 0}
    assert (train(image_training(tmp_path, trainer=settings), [], QUIET) / "manifest.json").exists()
