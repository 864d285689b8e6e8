"""What is measured on held-out windows while a policy is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy.data.dataset import WindowDataset
from drift_policy.policy import Policy
from drift_policy.task import load_demonstrations
from drift_policy.training import validation
from drift_policy.training.run import build_policy_and_data
from drift_policy.training.validation import CHOICE_ERROR, Validation
from tests.helpers.point_task import point_training

CPU = torch.device("cpu")
HEAD = {"name": "drift", "samples_per_observation": 4}
NETWORK = {"name": "mlp", "width": 16, "depth": 1}
WINDOWS = 1000  # more than there are, so that all are measured


def untrained(folder: Path, **policy: Any) -> tuple[Policy, WindowDataset]:
    """Return a policy with these settings, the same weights whenever it is called, and the held-out windows."""
    config = point_training(folder, policy={"head": HEAD, "network": NETWORK, **policy})
    demonstrations = load_demonstrations(config.task, config.data_path, False, lambda _: None)
    torch.manual_seed(0)
    policy_of_it, data = build_policy_and_data(config, demonstrations, CPU)
    assert isinstance(data.validation, WindowDataset)
    return policy_of_it.eval(), data.validation


def test_the_error_that_chooses_is_that_of_the_executed_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_AT_ONCE", 5)
    policy, windows = untrained(tmp_path, noise_scale=0.0)
    batch = windows.batch(np.arange(len(windows)))
    decided = policy.predict_action({"obs": batch["obs"]["obs"]})["action"]
    scaled = policy.normalizer.normalize("action", decided)
    demonstrated = policy.normalizer.normalize("action", torch.as_tensor(batch["action"])[:, 1:5])  # To 2, Ta 4
    error = float((scaled - demonstrated).square().mean())
    assert Validation(windows, WINDOWS, CPU, decides=True).measure(policy)[CHOICE_ERROR] == pytest.approx(
        error, rel=1e-5
    )


def test_the_error_that_chooses_is_that_of_the_policy_s_own_decisions(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{"noise_scale": 0.0}, {"noise_scale": 1.0}, {"num_candidates": 8}]
    measured = []
    for setting in settings:
        policy, windows = untrained(tmp_path, **setting)
        measured.append(Validation(windows, WINDOWS, CPU, decides=True).measure(policy))
    assert len({metrics[CHOICE_ERROR] for metrics in measured}) == len(settings)
    assert len({metrics["val/action_mse"] for metrics in measured}) == 1  # of single samples with all of the noise


def test_a_measurement_holds_no_more_observations_at_once_than_a_small_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, windows = untrained(tmp_path)
    expected = Validation(windows, WINDOWS, CPU).measure(policy)["val/typical_mse"]
    monkeypatch.setattr(validation, "_AT_ONCE", 5)
    encoded: list[int] = []
    policy.encoder.register_forward_hook(lambda _, given, output: encoded.append(len(output)))
    measured = Validation(windows, WINDOWS, CPU, decides=True).measure(policy)["val/typical_mse"]
    assert max(encoded) == 5 and sum(encoded) == 3 * len(windows)
    assert measured == pytest.approx(expected, rel=1e-4)


def test_a_measurement_repeats_and_draws_from_a_generator_of_its_own(tmp_path: Path) -> None:
    policy, windows = untrained(tmp_path)
    measured = Validation(windows, WINDOWS, CPU, decides=True)
    first = measured.measure(policy)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert measured.measure(policy) == first
    assert torch.equal(torch.get_rng_state(), state)


class Knowing:
    """Draws the demonstrated chunks of some windows, off by 3 and -1 constants in turn, and without noise by 5."""

    def __init__(self, windows: WindowDataset, constant: float, shown: np.ndarray) -> None:
        batch = windows.batch(shown)
        self.action, self.obs, self.constant = torch.as_tensor(batch["action"]), batch["obs"]["obs"], constant

    def __call__(self, obs: dict[str, torch.Tensor], number: int, *, noise_scale: float, **_: Any) -> torch.Tensor:
        assert torch.equal(obs["obs"], torch.as_tensor(self.obs))
        if noise_scale == 0:
            return self.action.unsqueeze(1) + 5 * self.constant
        offsets = torch.tensor([3.0, -1.0]).repeat(number // 2) * noise_scale * self.constant
        return self.action.unsqueeze(1) + offsets.reshape(1, number, 1, 1)


def test_errors_and_spread_are_those_of_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, windows = untrained(tmp_path)
    constant = 0.1
    monkeypatch.setattr(policy, "sample_actions", Knowing(windows, constant, np.arange(len(windows))))
    metrics = Validation(windows, WINDOWS, CPU).measure(policy)
    ends = policy.normalizer.normalize("action", torch.tensor([[0.0, 0.0], [constant, constant]]))
    scaled = ends[1] - ends[0]  # the constant in each of the normalised numbers
    expected = {
        "val/action_error": constant * 5**0.5,
        "val/action_mse": 5 * float(scaled.square().mean()),
        "val/spread": 2 * float(scaled.mean()),
        "val/typical_mse": 25 * float(scaled.square().mean()),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_measured_windows_are_spread_evenly_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, windows = untrained(tmp_path)
    last = len(windows) - 1
    monkeypatch.setattr(policy, "sample_actions", Knowing(windows, 0.1, np.array([0, round(last / 2), last])))
    metrics = Validation(windows, 3, CPU).measure(policy)
    assert metrics["val/action_error"] == pytest.approx(0.1 * 5**0.5, rel=1e-4)
