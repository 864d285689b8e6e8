"""Predictions: shapes, units, number of evaluations, noise, and the forms an observation may have."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drift_policy.heads import Draws
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.heads.flow import FlowHeadConfig
from tests.helpers.policies import (
    ACTION_HIGH,
    ACTION_LOW,
    HEAD_NAMES,
    NETWORKS,
    CallCounter,
    tiny_batch,
    tiny_obs,
    tiny_policy,
)

# To, Tp, Ta, Da
SIZES = [(1, 1, 1, 1), (1, 2, 2, 3), (2, 3, 2, 1), (3, 4, 1, 2), (2, 5, 4, 7), (1, 7, 3, 2), (2, 16, 8, 2)]
DDIM = DiffusionHeadConfig(sampler="ddim", num_train_steps=6, num_inference_steps=3)
# Heads whose chunk is a function of the starting noise; DDPM draws more noise on the way.
FUNCTIONS_OF_NOISE: list[tuple[str, Any]] = [
    ("drift", None),
    ("flow", None),
    ("mip", None),
    ("regression", None),
    ("diffusion", DDIM),
]
SAMPLE_WEIGHTS = {  # the weights that multiply the sample
    "mlp": {"sample_projection.weight"},
    "conditional_unet1d": {"down_levels.0.block_1.conv_1.0.weight", "down_levels.0.block_1.skip.weight"},
    "transformer": {"action_projection.weight"},
}
every_head = pytest.mark.parametrize("head", HEAD_NAMES)
every_network = pytest.mark.parametrize("network", NETWORKS)
functions_of_noise = pytest.mark.parametrize(("head", "config"), FUNCTIONS_OF_NOISE, ids=lambda value: str(value)[:9])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_head
@every_network
def test_loss_is_a_finite_scalar_that_trains_the_whole_network(head: str, network: str) -> None:
    policy = tiny_policy(head, network)
    loss, metrics = policy.train().compute_loss(tiny_batch(policy))
    assert loss.shape == () and bool(loss.isfinite())
    assert metrics and all(value.shape == () and value.isfinite() for value in metrics.values())
    assert not any(value.requires_grad for value in metrics.values())
    loss.backward()
    untrained = set()
    for name, parameter in policy.head.network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        if bool((parameter.grad == 0).all()):
            untrained.add(name)
    # The regression network sees zeros in place of the noise: what multiplies them has no gradient to get.
    assert untrained == (SAMPLE_WEIGHTS[network] if head == "regression" else set())


@every_head
@every_network
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_shapes_and_executed_part(head: str, network: str, sizes: tuple[int, int, int, int]) -> None:
    n_obs_steps, horizon, n_action_steps, action_dim = sizes
    policy = tiny_policy(
        head, network, n_obs_steps=n_obs_steps, horizon=horizon, n_action_steps=n_action_steps, action_dim=action_dim
    )
    assert (policy.n_obs_steps, policy.horizon, policy.n_action_steps, policy.action_dim) == sizes
    out = policy.predict_action(tiny_obs(policy, batch=2))
    assert set(out) == {"action", "action_pred"}
    assert out["action_pred"].shape == (2, horizon, action_dim)
    assert out["action"].shape == (2, n_action_steps, action_dim)
    assert torch.equal(out["action"], out["action_pred"][:, n_obs_steps - 1 : n_obs_steps - 1 + n_action_steps])
    assert bool(out["action_pred"].isfinite().all())


@every_head
def test_predictions_are_in_the_units_of_the_demonstrations(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(head)
    for normalised, expected in ((-1.0, ACTION_LOW), (0.0, (ACTION_LOW + ACTION_HIGH) / 2), (1.0, ACTION_HIGH)):
        monkeypatch.setattr(
            policy.head, "sample", lambda condition, noise, generator, value=normalised: torch.full_like(noise, value)
        )
        prediction = policy.predict_action(tiny_obs(policy))["action_pred"]
        torch.testing.assert_close(prediction, torch.full_like(prediction, expected))
        samples = policy.sample_actions(tiny_obs(policy), 4)
        torch.testing.assert_close(samples, torch.full((3, 4, 6, 2), expected))


def test_the_head_sees_normalised_actions_and_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("regression", observations={"a": 2, "b": 1})
    seen: list[Tensor] = []

    def record(action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        seen.extend((action, condition))
        return action.mean(), {}

    monkeypatch.setattr(policy.head, "compute_loss", record)
    highest = torch.tensor([[[9.0, 3.0], [-3.0, 9.0]]])  # 9 is the top of the range, -3 its bottom, 3 the middle
    batch = {"obs": {"b": torch.full((1, 2, 1), 9.0), "a": highest}, "action": torch.full((1, 6, 2), ACTION_LOW)}
    policy.compute_loss(batch)
    torch.testing.assert_close(seen[0], torch.full((1, 6, 2), -1.0))
    torch.testing.assert_close(seen[1], torch.tensor([[1.0, 0.0, 1.0, -1.0, 1.0, 1.0]]))


@pytest.mark.parametrize(
    ("head", "config", "evaluations"),
    [
        ("drift", None, 1),
        ("regression", None, 1),
        ("mip", None, 2),
        ("diffusion", DiffusionHeadConfig(), 100),
        ("diffusion", DiffusionHeadConfig(sampler="ddim", num_inference_steps=16), 16),
        ("flow", FlowHeadConfig(), 10),
        ("flow", FlowHeadConfig(num_inference_steps=1), 1),
    ],
)
def test_number_of_network_evaluations(head: str, config: Any, evaluations: int) -> None:
    policy = tiny_policy(head, head_config=config)
    network, encoder = CallCounter(policy.head.network), CallCounter(policy.encoder)
    policy.predict_action(tiny_obs(policy))
    assert network.calls == policy.num_evaluations == evaluations
    assert encoder.calls == 1


@every_head
def test_each_observation_is_encoded_once_however_many_samples(head: str) -> None:
    policy = tiny_policy(head)
    encoder = CallCounter(policy.encoder)
    samples = policy.sample_actions(tiny_obs(policy), 5)
    assert samples.shape == (3, 5, 6, 2)
    policy.compute_loss(tiny_batch(policy, batch=4))
    assert encoder.rows == [3, 4]


@every_head
def test_a_generator_makes_predictions_repeatable(head: str) -> None:
    policy = tiny_policy(head)
    obs = tiny_obs(policy)
    first, again, other = (policy.predict_action(obs, generator=seeded(seed))["action_pred"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (not policy.head.stochastic)
    many, many_again = (policy.sample_actions(obs, 3, generator=seeded()) for _ in range(2))
    assert torch.equal(many, many_again)
    state = torch.get_rng_state()
    policy.predict_action(obs, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state), "a generator was given, so the global one must not move"


@functions_of_noise
def test_given_noise_decides_the_chunk(head: str, config: Any) -> None:
    policy = tiny_policy(head, head_config=config)
    obs, noise = tiny_obs(policy), torch.randn(3, 6, 2, generator=seeded())
    first = policy.predict_action(obs, noise=noise)["action_pred"]
    assert torch.equal(policy.predict_action(obs, noise=noise.double().numpy())["action_pred"], first)
    changed = (policy.predict_action(obs, noise=noise + 1.0)["action_pred"] - first).abs().flatten(1).amax(dim=1)
    assert bool((changed > 0).all()) == policy.head.stochastic
    one_row_changed = noise.clone()
    one_row_changed[1] = -noise[1]
    difference = policy.predict_action(obs, noise=one_row_changed)["action_pred"] - first
    assert difference[[0, 2]].abs().amax() < 1e-3


@functions_of_noise
def test_noise_scale_zero_is_the_chunk_of_zero_noise(head: str, config: Any) -> None:
    policy = tiny_policy(head, head_config=config)
    obs = tiny_obs(policy)
    zero = policy.predict_action(obs, noise=torch.zeros(3, 6, 2))["action_pred"]
    assert torch.equal(policy.predict_action(obs, noise_scale=0.0)["action_pred"], zero)
    assert torch.equal(policy.predict_action(obs, noise_scale=0.0)["action_pred"], zero)
    samples = policy.sample_actions(obs, 4, noise_scale=0.0)
    torch.testing.assert_close(samples, zero.unsqueeze(1).expand_as(samples))


def test_noise_scale_of_the_configuration_is_the_default() -> None:
    half, full = tiny_policy(noise_scale=0.5), tiny_policy()
    obs, noise = tiny_obs(full), torch.randn(3, 6, 2, generator=seeded())
    expected = full.predict_action(obs, noise=0.5 * noise)["action_pred"]
    assert torch.equal(half.predict_action(obs, noise=noise)["action_pred"], expected)
    assert torch.equal(full.predict_action(obs, noise=noise, noise_scale=0.5)["action_pred"], expected)
    assert not torch.equal(full.predict_action(obs, noise=noise)["action_pred"], expected)


def test_samples_equal_predictions_with_the_same_noise() -> None:
    policy = tiny_policy()
    obs = tiny_obs(policy)
    samples = policy.sample_actions(obs, 4, generator=seeded())
    noise = torch.randn(3, 4, 6, 2, generator=seeded())
    for number in range(4):
        one = policy.predict_action(obs, noise=noise[:, number])["action_pred"]
        torch.testing.assert_close(samples[:, number], one)


@every_head
@every_network
def test_rows_of_a_batch_equal_single_predictions(head: str, network: str) -> None:
    config = DDIM if head == "diffusion" else None
    policy = tiny_policy(head, network, head_config=config)
    obs, noise = tiny_obs(policy), torch.randn(3, 6, 2, generator=seeded())
    together = policy.predict_action(obs, noise=noise)["action_pred"]
    assert bool(((together[0] - together[1]).abs() > 1e-3).any()), "the observation must have an influence"
    for row in range(3):
        alone = policy.predict_action({"obs": obs["obs"][row : row + 1]}, noise=noise[row : row + 1])["action_pred"]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-2)  # actions span 400 units


@every_head
def test_prediction_runs_in_inference_mode(head: str) -> None:
    policy = tiny_policy(head)
    for result in (*policy.predict_action(tiny_obs(policy)).values(), policy.sample_actions(tiny_obs(policy), 2)):
        assert result.is_inference() and not result.requires_grad


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("form", ["array", "float64 array", "float64 tensor", "read-only array", "bare tensor", "bare"])
def test_forms_of_an_observation(form: str) -> None:
    policy = tiny_policy()
    value = tiny_obs(policy)["obs"]
    array = value.numpy()
    read_only = array.copy()
    read_only.setflags(write=False)
    obs: Any = {
        "array": {"obs": array},
        "float64 array": {"obs": array.astype(np.float64)},
        "float64 tensor": {"obs": value.double()},
        "read-only array": {"obs": read_only},
        "bare tensor": value,
        "bare": array,
    }[form]
    result = policy.predict_action(obs, generator=seeded())["action_pred"]
    assert result.dtype == torch.float32
    assert torch.equal(result, policy.predict_action({"obs": value}, generator=seeded())["action_pred"])


def test_key_order_and_extra_keys_make_no_difference() -> None:
    policy = tiny_policy(observations={"a": 2, "b": 3})
    obs = tiny_obs(policy)
    expected = policy.predict_action(obs, generator=seeded())["action_pred"]
    shuffled = {"unused": torch.full((1,), torch.nan), "b": obs["b"], "a": obs["a"]}
    assert torch.equal(policy.predict_action(shuffled, generator=seeded())["action_pred"], expected)


def test_a_float64_policy_predicts_in_float64() -> None:
    policy = tiny_policy()
    obs, noise = tiny_obs(policy), torch.randn(3, 6, 2, generator=seeded())
    expected = policy.predict_action(obs, noise=noise)["action_pred"]
    result = policy.to(torch.float64).predict_action(obs, noise=noise)["action_pred"]
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.float(), expected, rtol=1e-4, atol=1e-2)
