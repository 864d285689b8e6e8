"""The toy's modes are as far from each other as they say, and its measures tell the outcomes apart."""

import pytest
import torch
from torch import Tensor

from benchmarks.multimodal_toy import ToyConfig, draw_observations, measure, modes
from drift_policy.errors import ConfigurationError

HORIZON = 8


def targets(number: int) -> Tensor:
    return modes(draw_observations(20, torch.Generator().manual_seed(0)), number, HORIZON)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_modes_surround_their_mean_and_turn_with_the_observation(number: int) -> None:
    corners = targets(number).flatten(2)
    torch.testing.assert_close(corners.mean(dim=1), torch.zeros(20, HORIZON * 2), atol=1e-5, rtol=0)
    assert torch.pdist(corners[0]).min() > 0.5
    assert (corners[0] - corners[1]).norm(dim=1).min() > 0.1


@pytest.mark.parametrize(
    ("weights", "on_mode", "all_modes", "near_mean", "spread"),
    [([0.5, 0.5], 1.0, 1.0, 0.0, 1.0), ([1.0, 0.0], 1.0, 0.0, 0.0, 0.0), ([0.9, 0.1], 1.0, 0.0, 0.0, 0.6)],
    ids=["both", "one", "nearly one"],
)
def test_samples_on_modes(
    weights: list[float], on_mode: float, all_modes: float, near_mean: float, spread: float
) -> None:
    corners = targets(2)
    counts = torch.tensor([round(20 * weight) for weight in weights])
    result = measure(corners.repeat_interleave(counts, dim=1), corners)
    assert (result.on_mode, result.all_modes, result.near_mean) == (on_mode, all_modes, near_mean)
    assert result.spread == pytest.approx(spread, abs=1e-4) and result.error == pytest.approx(0.0, abs=1e-3)


def test_samples_on_the_mean_of_the_modes() -> None:
    corners = targets(4)
    result = measure(corners.mean(dim=1, keepdim=True).expand(-1, 20, -1, -1), corners)
    assert (result.on_mode, result.all_modes, result.near_mean) == (0.0, 0.0, 1.0)


def test_one_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_modes"):
        ToyConfig(task={}, policy={}, name="toy", num_modes=1)
