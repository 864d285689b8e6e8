"""The most typical of several candidates is a sample of the fullest mode, and one candidate is today's answer."""

import pytest
import torch

from drift_policy.candidates import most_typical
from drift_policy.errors import ConfigurationError
from drift_policy.evaluation.rollout import EvaluationConfig
from tests.helpers.policies import tiny_obs, tiny_policy


def test_the_fullest_mode_wins_over_the_mean_and_over_the_tail() -> None:
    torch.manual_seed(0)
    left = -1 + 0.05 * torch.randn(1, 10, 3, 2)
    right = 1 + 0.05 * torch.randn(1, 5, 3, 2)
    between = torch.zeros(1, 1, 3, 2)
    chosen = most_typical(torch.cat([right, between, left], dim=1))
    assert (chosen + 1).abs().max() < 0.2
    assert any(torch.equal(chosen[0], candidate) for candidate in left[0])


def test_one_candidate_is_the_sample_itself() -> None:
    policy = tiny_policy()
    obs = tiny_obs(policy)
    plain = policy.predict_action(obs, generator=torch.Generator().manual_seed(1))
    single = policy.predict_action(obs, generator=torch.Generator().manual_seed(1), num_candidates=1)
    assert torch.equal(plain["action"], single["action"])


def test_candidates_are_drawn_from_the_observations_own_generator() -> None:
    policy = tiny_policy()
    obs = tiny_obs(policy)

    def answer(rows: slice) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)][rows]
        part = {key: value[rows] for key, value in obs.items()}
        return policy.predict_action(part, generator=generators, num_candidates=8)["action"]

    together = answer(slice(0, 3))
    torch.testing.assert_close(together[1:2], answer(slice(1, 2)))
    samples = policy.sample_actions(obs, 8, generator=[torch.Generator().manual_seed(seed) for seed in range(3)])
    first = policy.n_obs_steps - 1
    executed = samples[:, :, first : first + policy.n_action_steps]
    assert torch.isclose(executed, together.unsqueeze(1)).all(dim=(2, 3)).any(dim=1).all()


def test_wrong_numbers_are_refused() -> None:
    policy = tiny_policy()
    obs = tiny_obs(policy)
    with pytest.raises(ValueError, match="num_candidates"):
        policy.predict_action(obs, num_candidates=0)
    noise = torch.zeros(3, policy.horizon, policy.action_dim)
    with pytest.raises(ValueError, match="num_candidates"):
        policy.predict_action(obs, noise=noise, num_candidates=2)
    with pytest.raises(ConfigurationError, match="num_candidates"):
        EvaluationConfig(num_candidates=0)
