"""The U-Net at horizons that its resolution levels do not divide."""

import pytest
import torch

from drift_policy.networks import ConditionalUnet1d, ConditionalUnet1dConfig


def build(config: ConditionalUnet1dConfig, *, horizon: int, condition_dim: int, timed: bool) -> ConditionalUnet1d:
    return ConditionalUnet1d(config, horizon=horizon, action_dim=2, condition_dim=condition_dim, time_conditioned=timed)


@pytest.mark.parametrize("horizon", range(1, 21))
def test_any_horizon_equals_the_padded_chunk(horizon: int) -> None:
    torch.manual_seed(0)
    config = ConditionalUnet1dConfig([16, 16, 16])
    padded_horizon = next(length for length in range(horizon, 24) if length % 4 == 0)
    network = build(config, horizon=horizon, condition_dim=3, timed=False)
    padded_network = build(config, horizon=padded_horizon, condition_dim=3, timed=False)
    padded_network.load_state_dict(network.state_dict())

    sample, condition = torch.randn(2, 3, horizon, 2), torch.randn(2, 3)
    last_step = sample[:, :, -1:].expand(-1, -1, padded_horizon - horizon, -1)
    expected = padded_network(torch.cat([sample, last_step], dim=2), condition)[:, :, :horizon]
    torch.testing.assert_close(network(sample, condition), expected)
