"""The most typical candidate is a sample of the fullest mode, and every decision draws the policy's number of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drift_policy import Policy, load_policy
from drift_policy.candidates import most_typical
from drift_policy.errors import ConfigurationError
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.spec import describe_policy
from drift_policy.runtime.timed_policy import TimedPolicy
from drift_policy.runtime.warm_up import warm_up
from tests.helpers.policies import HEAD_NAMES, tiny_obs, tiny_policy

CANDIDATES = 5


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chunks_drawn(policy: Policy) -> list[int]:
    """Return a list that grows by the chunks an observation of each evaluation of the network."""
    drawn: list[int] = []
    policy.head.network.register_forward_hook(lambda module, inputs, output: drawn.append(output.shape[1]))
    return drawn


def test_the_fullest_mode_wins_over_the_mean_and_over_the_tail() -> None:
    torch.manual_seed(0)
    left = -1 + 0.05 * torch.randn(1, 10, 3, 2)
    right = 1 + 0.05 * torch.randn(1, 5, 3, 2)
    between = torch.zeros(1, 1, 3, 2)
    chosen = most_typical(torch.cat([right, between, left], dim=1))
    assert (chosen + 1).abs().max() < 0.2
    assert any(torch.equal(chosen[0], candidate) for candidate in left[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([7.0, 3.0], 7.0),  # equals: the first
        ([0.0, 1.0, 5.0, 1.25], 1.0),  # the nearest pair are equals
        ([0.0, 10.0, 11.0, 13.0, 30.0, 40.0, 51.0, 65.0], 11.0),  # to the nearest two of the others: 1 + 2
    ],
)
def test_the_choice_by_hand(values: list[float], expected: float) -> None:
    chunks = torch.tensor(values).reshape(1, -1, 1, 1)
    assert most_typical(chunks).tolist() == [[[expected]]]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 20), batch=st.integers(1, 3), shift=st.floats(-50, 50))
def test_no_candidate_is_more_typical_than_the_chosen_one(seed: int, number: int, batch: int, shift: float) -> None:
    chunks = (shift + np.random.default_rng(seed).standard_normal((batch, number, 2, 3))).astype(np.float32)
    chosen = most_typical(torch.as_tensor(chunks)).numpy()
    flat = chunks.reshape(batch, number, -1).astype(np.float64)
    distances = np.sort(np.linalg.norm(flat[:, :, None] - flat[:, None], axis=3), axis=2)
    scores = distances[:, :, : max(2, number // 4 + 1)].sum(axis=2)
    for row in range(batch):
        (places,) = np.nonzero((chunks[row] == chosen[row]).all(axis=(1, 2)))
        assert len(places) >= 1, "it is one of them"
        assert scores[row, places[0]] <= scores[row].min() * (1 + 1e-5) + 1e-9


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


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_the_policys_own_number_is_the_default_and_a_call_may_give_another(head: str) -> None:
    own, plain = tiny_policy(head, num_candidates=CANDIDATES), tiny_policy(head)
    obs = tiny_obs(own)
    expected = plain.predict_action(obs, generator=seeded(), num_candidates=CANDIDATES)["action_pred"]
    assert torch.equal(own.predict_action(obs, generator=seeded())["action_pred"], expected)
    single = plain.predict_action(obs, generator=seeded())["action_pred"]
    assert torch.equal(own.predict_action(obs, generator=seeded(), num_candidates=1)["action_pred"], single)
    samples = [policy.sample_actions(obs, 4, generator=seeded()) for policy in (own, plain)]
    assert torch.equal(*samples), "samples are themselves"


def test_given_noise_says_how_many_candidates_there_are() -> None:
    own, plain = tiny_policy(num_candidates=CANDIDATES), tiny_policy()
    obs, drawn = tiny_obs(own), chunks_drawn(own)
    noise = torch.randn(3, 7, 6, 2, generator=seeded())
    several = own.predict_action(obs, noise=noise.double().numpy())["action_pred"]
    one = own.predict_action(obs, noise=noise[:, 2])["action_pred"]
    assert drawn == [7, 1]
    assert torch.equal(one, plain.predict_action(obs, noise=noise[:, 2:3])["action_pred"])
    by_themselves = torch.stack(
        [plain.predict_action(obs, noise=noise[:, number])["action_pred"] for number in range(7)], dim=1
    )
    torch.testing.assert_close(several, most_typical(by_themselves), rtol=1e-5, atol=1e-3)


def observed(policy: Policy) -> dict[str, Tensor]:
    return {"obs": torch.zeros(1, policy.n_obs_steps, 5)}


WAYS: dict[str, Any] = {
    "predict_action": lambda policy: policy.predict_action(observed(policy)),
    "select_action": lambda policy: policy.select_action(torch.zeros(5)),
    "timed": lambda policy: TimedPolicy(policy).predict_action(observed(policy)),
    "robot loop": lambda policy: RecedingHorizon(policy, 10.0).step(np.zeros(5)),
    "robot loop, timed": lambda policy: RecedingHorizon(TimedPolicy(policy), 10.0).step(np.zeros(5)),
    "warm-up": lambda policy: warm_up(policy, calls=1),
    "warm-up, timed": lambda policy: warm_up(TimedPolicy(policy), calls=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_decide_draws_the_policys_number_in_one_evaluation(way: str) -> None:
    policy = tiny_policy(num_candidates=CANDIDATES)
    drawn = chunks_drawn(policy)
    WAYS[way](policy)
    assert drawn == [CANDIDATES]


def test_the_spec_says_the_number() -> None:
    policy = tiny_policy(num_candidates=CANDIDATES)
    for described in (describe_policy(policy), describe_policy(TimedPolicy(policy))):
        assert (described.num_candidates, described.num_evaluations) == (CANDIDATES, 1)
        assert described.noise_shape == (CANDIDATES, 6, 2)
    assert describe_policy(tiny_policy()).noise_shape == (6, 2)


def test_the_number_is_saved_and_checkpoints_without_it_draw_one(tmp_path: Path) -> None:
    tiny_policy(num_candidates=CANDIDATES).save_pretrained(tmp_path)
    assert load_policy(tmp_path).config.num_candidates == CANDIDATES
    content = json.loads((tmp_path / "config.json").read_text())
    del content["policy"]["num_candidates"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    older = load_policy(tmp_path)
    drawn = chunks_drawn(older)
    older.select_action(torch.zeros(5))
    assert drawn == [1]


def test_wrong_numbers_are_refused() -> None:
    policy = tiny_policy()
    obs = tiny_obs(policy)
    with pytest.raises(ValueError, match="num_candidates"):
        policy.predict_action(obs, num_candidates=0)
    noise = torch.zeros(3, policy.horizon, policy.action_dim)
    for number in (1, 2):
        with pytest.raises(ValueError, match=f"num_candidates is {number}: .* none with noise"):
            policy.predict_action(obs, noise=noise, num_candidates=number)
    with pytest.raises(ConfigurationError, match="num_candidates"):
        EvaluationConfig(num_candidates=0)
