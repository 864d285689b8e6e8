"""The drift head: which samples form a kernel problem, the noise it draws, and what it reports."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drift_policy.drift import drift_loss, temperature_score
from drift_policy.errors import ConfigurationError
from drift_policy.heads.drift import DriftHead, DriftHeadConfig, Positives, sample_spread

B, G, TP, DA, C = 4, 3, 5, 2, 7


class Recorder(nn.Module):
    """Stands for a network: returns scaled noise shifted by the condition, and keeps what it was given."""

    horizon, action_dim = TP, DA

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.samples: list[Tensor] = []

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        self.samples.append(sample)
        return self.scale * sample + condition.mean(dim=1)[:, None, None, None]


def make_head(**settings: Any) -> tuple[DriftHead, Recorder]:
    network: Any = Recorder()
    return DriftHead(DriftHeadConfig(samples_per_observation=G, **settings), network), network


def make_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, TP, DA, generator=generator), torch.randn(B, C, generator=generator)


def compute_loss(head: DriftHead, action: Tensor, condition: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    return head.compute_loss(action, condition, head.draw(len(action), torch.Generator().manual_seed(seed)))


def generated(network: Recorder, condition: Tensor) -> Tensor:
    """The chunks of the latest loss, [B, G, Tp, Da]."""
    return network.scale * network.samples[-1] + condition.mean(dim=1)[:, None, None, None]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"scope": "group"},
    {"affinity_floor": 1e-6},
    {"temperatures": [0.1, 0.5]},
    {"scope": "group", "affinity_floor": 1e-6, "temperatures": [0.3]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("per_time_step", [False, True])
def test_equals_the_drift_loss_of_folded_chunks(settings: dict[str, Any], per_time_step: bool) -> None:
    head, network = make_head(per_time_step=per_time_step, **settings)
    action, condition = make_batch()
    loss, _ = compute_loss(head, action, condition)
    (gradient,) = torch.autograd.grad(loss, network.scale)

    chunks = generated(network, condition)
    if per_time_step:  # problem (b, t) holds the t-th step of the G chunks of observation b
        gen = torch.stack([chunks[b, :, t] for b in range(B) for t in range(TP)])
        pos = torch.stack([action[b, t].unsqueeze(0) for b in range(B) for t in range(TP)])
    else:
        gen, pos = chunks.reshape(B, G, TP * DA), action.reshape(B, 1, TP * DA)
    expected, _ = drift_loss(gen, pos, **({"affinity_floor": 0.0} | settings))
    (expected_gradient,) = torch.autograd.grad(expected.mean(), network.scale)
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(gradient, expected_gradient)


def gradient_on_samples(
    head: DriftHead, action: Tensor, condition: Tensor, draws: dict[str, Tensor] | None = None
) -> Tensor:
    """Gradient of the loss with respect to the generated chunks, [B, G, Tp, Da], with the same noise unless given."""
    chunks: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        chunks.append(output)

    handle = head.network.register_forward_hook(keep)
    given = head.draw(len(action), torch.Generator().manual_seed(0)) if draws is None else draws
    head.compute_loss(action, condition, given)[0].backward()
    handle.remove()
    assert chunks[0].grad is not None
    return chunks[0].grad


@pytest.mark.parametrize("per_time_step", [False, True])
def test_observations_do_not_affect_each_other_with_group_scope(per_time_step: bool) -> None:
    action, condition = make_batch()
    head, _ = make_head(scope="group", per_time_step=per_time_step)
    before = gradient_on_samples(head, action, condition)
    other_action, other_condition = action.clone(), condition.clone()
    other_action[0] += 3.0
    other_condition[0] -= 2.0
    after = gradient_on_samples(head, other_action, other_condition)
    torch.testing.assert_close(after[1:], before[1:])
    assert not torch.allclose(after[0], before[0], rtol=0.1)


def test_batch_scope_shares_its_statistics() -> None:
    action, condition = make_batch()
    head, _ = make_head(scope="batch")
    before = gradient_on_samples(head, action, condition)
    action[0] += 3.0
    assert not torch.allclose(gradient_on_samples(head, action, condition)[1:], before[1:], rtol=0.1)


def test_samples_of_one_observation_repel_each_other() -> None:
    """With the same positive, a sample is pushed away from a sibling: its gradient depends on where that is."""
    head, _ = make_head(scope="group")
    action, condition = torch.zeros(1, TP, DA), torch.zeros(1, C)
    noise = head.draw(1, torch.Generator().manual_seed(0))["noise"]
    moved = noise.clone()
    moved[0, 1] = -noise[0, 1]
    gradients = [gradient_on_samples(head, action, condition, {"noise": samples}) for samples in (noise, moved)]
    assert not torch.allclose(gradients[0][0, 0], gradients[1][0, 0], rtol=0.1)


def test_every_sample_of_every_observation_has_its_own_standard_normal_noise() -> None:
    network: Any = Recorder()
    head = DriftHead(DriftHeadConfig(samples_per_observation=16), network)
    for seed in range(2):
        compute_loss(head, torch.zeros(32, TP, DA), torch.zeros(32, C), seed)
    noise = torch.stack(network.samples)
    assert noise.shape == (2, 32, 16, TP, DA)
    assert len(noise.unique()) > 0.999 * noise.numel()
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03


def test_metrics() -> None:
    head, network = make_head(temperatures=[0.02, 0.5])
    action, condition = make_batch()
    _, metrics = compute_loss(head, action, condition)
    assert set(metrics) == {"scale", "spread", "action_mse", "force_0.02", "force_0.5"}
    chunks = generated(network, condition).detach()
    _, info = drift_loss(
        chunks.flatten(2), action.reshape(B, 1, -1), temperatures=[0.02, 0.5], affinity_floor=0.0, scope="batch"
    )
    torch.testing.assert_close(metrics["scale"], info["scale"])
    torch.testing.assert_close(metrics["force_0.5"], info["force_sq"][0.5].sqrt())
    torch.testing.assert_close(metrics["action_mse"], ((chunks - action[:, None]) ** 2).mean())
    torch.testing.assert_close(metrics["spread"], chunks.std(dim=1, unbiased=False).mean())


def test_spread_is_the_deviation_between_samples_not_between_observations() -> None:
    one_chunk_each = torch.randn(B, 1, TP, DA).expand(-1, G, -1, -1)
    assert float(sample_spread(one_chunk_each)) == pytest.approx(0.0, abs=1e-6)
    two = torch.stack([torch.full((B, TP, DA), -3.0), torch.full((B, TP, DA), 3.0)], dim=1)
    assert float(sample_spread(two)) == 3.0


def test_one_sample_per_observation_trains_towards_the_demonstration() -> None:
    """Without siblings only the floor keeps a force, and it points at the positive."""
    network: Any = Recorder()
    head = DriftHead(DriftHeadConfig(samples_per_observation=1, affinity_floor=1e-6), network)
    action, condition = make_batch()
    gradient = gradient_on_samples(head, action, condition).flatten(1)
    towards = (action - generated(network, condition).detach()[:, 0]).flatten(1)
    assert bool((torch.cosine_similarity(-gradient, towards) > 0.999).all())


SCHEDULE: dict[str, Any] = {"kernel": "energy", "regression_weight": 2.0, "regression_steps": 8}


@pytest.mark.parametrize(("step", "weight"), [(0, 2.0), (2, 1.5), (7, 0.25), (8, 0.0), (1000, 0.0)])
def test_weight_of_the_regression_falls_linearly_to_zero(step: int, weight: float) -> None:
    action, condition = make_batch()
    head, network = make_head(**SCHEDULE)
    draws = head.draw(B, torch.Generator().manual_seed(0))
    scheduled = head.scheduled(B, step)
    assert scheduled["regression_weight"].tolist() == [weight] * B
    loss, metrics = head.compute_loss(action, condition, draws | scheduled)
    plain, _ = make_head(kernel="energy")
    expected, plain_metrics = plain.compute_loss(action, condition, draws)
    torch.testing.assert_close(loss.detach(), expected.detach() + weight * plain_metrics["action_mse"])
    assert float(metrics["regression_weight"]) == weight
    (gradient,) = torch.autograd.grad(loss, network.scale)
    constant, other = make_head(kernel="energy", regression_weight=weight)
    (expected_gradient,) = torch.autograd.grad(constant.compute_loss(action, condition, draws)[0], other.scale)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_constant_weight_needs_no_step_and_draws_nothing_more() -> None:
    head, _ = make_head(kernel="energy", regression_weight=2.0)
    assert head.scheduled(B, None) == head.scheduled(B, 3) == {}
    _, metrics = compute_loss(head, *make_batch())
    assert "regression_weight" not in metrics


@pytest.mark.parametrize("settings", [{}, {"kernel": "energy"}, {"kernel": "energy", "affinity_floor": 1e-6}])
def test_a_single_sample_that_would_learn_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="samples_per_observation must be at least 2"):
        DriftHeadConfig(samples_per_observation=1, **settings)


@pytest.mark.parametrize("settings", [{"affinity_floor": 1e-6}, {"regression_weight": 1.0}])
def test_a_single_sample_may_learn_from_the_floor_or_the_regression(settings: dict[str, Any]) -> None:
    assert DriftHeadConfig(samples_per_observation=1, **settings).samples_per_observation == 1


LEARNED: dict[str, Any] = {"samples_per_observation": 5, "temperatures": [0.05, 0.2], "learned_temperatures": True}


def learning_head(**settings: Any) -> tuple[DriftHead, Recorder]:
    network: Any = Recorder()
    return DriftHead(DriftHeadConfig(**(LEARNED | settings)), network), network


@pytest.mark.parametrize("per_time_step", [False, True])
@pytest.mark.parametrize("scope", ["batch", "group"])
def test_learned_temperatures_leave_the_generator_its_gradient(per_time_step: bool, scope: str) -> None:
    action, condition = make_batch()
    settings = {"per_time_step": per_time_step, "scope": scope}
    head, network = learning_head(**settings)
    plain, other = learning_head(learned_temperatures=False, **settings)
    loss, metrics = compute_loss(head, action, condition)
    expected, plain_metrics = compute_loss(plain, action, condition)
    offsets = head.temperature_offsets
    assert offsets is not None and plain.temperature_offsets is None
    gradient, teaching = torch.autograd.grad(loss, [network.scale, offsets])
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, other.scale)[0], rtol=1e-4, atol=1e-6)
    assert bool((teaching != 0).all()), "temperatures are taught"
    torch.testing.assert_close(loss - metrics["temperature_score"], expected, rtol=1e-4, atol=1e-5)
    assert set(metrics) - set(plain_metrics) == {"temperature_score", "temperature_0.05", "temperature_0.2"}
    assert float(metrics["temperature_0.2"]) == pytest.approx(0.2, rel=1e-5)

    chunks = generated(network, condition).detach()
    gen = chunks.transpose(1, 2).flatten(0, 1) if per_time_step else chunks.flatten(2)
    pos = action.flatten(0, 1).unsqueeze(1) if per_time_step else action.flatten(1).unsqueeze(1)
    score = temperature_score(gen, pos, torch.tensor([0.05, 0.2]), affinity_floor=0.0, scope=scope)  # type: ignore[arg-type]
    torch.testing.assert_close(metrics["temperature_score"], score.mean(), rtol=1e-4, atol=1e-6)


def test_learned_temperatures_are_those_of_the_loss_and_stay_in_their_range() -> None:
    action, condition = make_batch()
    head, network = learning_head()
    assert head.temperature_offsets is not None
    with torch.no_grad():
        head.temperature_offsets.copy_(torch.tensor([0.7, -0.4]))
    moved = head.temperatures()
    assert isinstance(moved, Tensor) and float(moved[0].detach()) > 0.1 and float(moved[1].detach()) < 0.15
    loss, metrics = compute_loss(head, action, condition)
    chunks = generated(network, condition).detach().flatten(2)
    expected, info = drift_loss(
        chunks, action.flatten(1).unsqueeze(1), temperatures=moved.tolist(), affinity_floor=0.0, scope="batch"
    )
    torch.testing.assert_close(loss - metrics["temperature_score"], expected.mean(), rtol=1e-4, atol=1e-5)
    for start, now in zip(("0.05", "0.2"), moved.tolist(), strict=True):
        torch.testing.assert_close(metrics[f"force_{start}"], info["force_sq"][now].sqrt(), rtol=1e-4, atol=1e-6)
        assert float(metrics[f"temperature_{start}"]) == now
    with torch.no_grad():
        head.temperature_offsets.copy_(torch.tensor([1e4, -1e4]))
    torch.testing.assert_close(head.temperatures(), torch.tensor([10.0, 1e-3]))


def test_the_temperatures_are_taught_with_the_affinity_floor_of_the_loss() -> None:
    action, condition = make_batch()
    head, network = learning_head(affinity_floor=0.1)
    _, metrics = compute_loss(head, action, condition)
    chunks, target = generated(network, condition).detach().flatten(2), action.flatten(1).unsqueeze(1)
    scores = [
        temperature_score(chunks, target, torch.tensor([0.05, 0.2]), affinity_floor=floor, scope="batch").mean()
        for floor in (0.1, 0.0)
    ]
    torch.testing.assert_close(metrics["temperature_score"], scores[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(scores[0], scores[1], rtol=1e-3)


def test_the_own_chunk_alone_teaches_the_temperatures() -> None:
    action, condition = make_batch()
    head, _ = learning_head()
    draws = head.draw(B, torch.Generator().manual_seed(0))
    others = Positives(torch.stack([action, action + 1], dim=1), torch.full((B, 2), 0.5))
    (alone, metrics), (several, other_metrics) = (
        head.compute_loss(action, condition, draws, positives) for positives in (None, others)
    )
    assert torch.equal(metrics["temperature_score"], other_metrics["temperature_score"])
    assert not torch.equal(alone, several), "the samples see both"


def test_heads_without_learned_temperatures_have_the_tensors_they_had() -> None:
    head, _ = make_head()
    assert set(head.state_dict()) == {"network.scale"} and not list(head.buffers())
    assert set(learning_head()[0].state_dict()) == {"network.scale", "temperature_offsets"}
