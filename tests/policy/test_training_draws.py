"""The random numbers of a training step: an input of the loss, one row an observation."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from drift_policy import Policy
from drift_policy.demonstrated import PositiveNoise
from drift_policy.heads.drift import DriftHeadConfig
from tests.helpers.image_policies import camera, tiny_image_policy
from tests.helpers.policies import HEAD_NAMES, tiny_batch, tiny_policy

B = 6
CAMERAS = {"front": camera(crop=[8, 9]), "wrist": camera()}
every_head = pytest.mark.parametrize("head", HEAD_NAMES)
EXPECTED = {
    "drift": {"noise"},
    "diffusion": {"noise", "step"},
    "flow": {"noise", "time"},
    "mip": {"noise"},
    "regression": set(),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_policy(head: str, **settings: Any) -> Policy:
    return tiny_image_policy(head, cameras=CAMERAS, **settings)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@every_head
def test_every_observation_has_a_row(head: str) -> None:
    draws = image_policy(head).draw(B, seeded())
    assert set(draws) == EXPECTED[head] | {"crop.front"}
    assert all(value.device.type == "cpu" and len(value) == B for value in draws.values())
    for name, value in draws.items():
        assert len(value.flatten(1).unique(dim=0)) > 1 if value.ndim > 1 else len(value.unique()) > 1, name
    assert set(tiny_policy(head).draw(B)) == EXPECTED[head]


@every_head
def test_draws_are_a_function_of_the_generator(head: str) -> None:
    policy = image_policy(head)
    state = torch.get_rng_state()
    first, again, other = (policy.draw(B, seeded(seed)) for seed in (0, 0, 1))
    assert equal(first, again)
    assert all(not torch.equal(value, other[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), state), "a generator was given, so the global one must not move"


@every_head
def test_the_loss_is_a_function_of_the_draws(head: str) -> None:
    policy = image_policy(head).train()
    batch = tiny_batch(policy, B)
    draws = policy.draw(B, seeded())
    state = torch.get_rng_state()
    first, first_metrics = policy.compute_loss(batch, draws)
    again, again_metrics = policy.compute_loss(batch, {name: value.clone() for name, value in draws.items()})
    assert torch.equal(first, again) and equal(first_metrics, again_metrics)
    assert torch.equal(torch.get_rng_state(), state), "all random numbers were given"
    for name, value in policy.draw(B, seeded(1)).items():
        changed, changed_metrics = policy.compute_loss(batch, draws | {name: value})
        assert not (torch.equal(changed, first) and equal(changed_metrics, first_metrics)), name


@every_head
def test_absent_draws_come_from_the_default_generator(head: str) -> None:
    policy = image_policy(head)
    batch = tiny_batch(policy, B)
    torch.manual_seed(3)
    drawn_inside, _ = policy.compute_loss(batch)
    torch.manual_seed(3)
    assert torch.equal(policy.compute_loss(batch, policy.draw(B))[0], drawn_inside)


GROUP_SCOPE = DriftHeadConfig(samples_per_observation=3, scope="group")


@pytest.mark.parametrize(
    ("head", "config"),
    [("regression", None), ("diffusion", None), ("flow", None), ("mip", None), ("drift", GROUP_SCOPE)],
)
def test_rows_of_the_draws_belong_to_rows_of_the_batch(head: str, config: Any) -> None:
    """The mean of the losses of the parts of a batch is the loss of the batch, and every chunk is the same."""
    policy = image_policy(head, head_config=config)
    batch, draws = tiny_batch(policy, B), policy.draw(B, seeded())
    chunks: list[Tensor] = []
    policy.head.network.register_forward_hook(lambda module, inputs, output: chunks.append(output.detach()))
    whole, _ = policy.compute_loss(batch, draws)
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        part = {"obs": {key: value[rows] for key, value in batch["obs"].items()}, "action": batch["action"][rows]}
        parts.append(policy.compute_loss(part, {name: value[rows] for name, value in draws.items()})[0])
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(chunks[1:]), chunks[0], rtol=1e-4, atol=1e-4)
    assert float(chunks[0].std(dim=0).mean()) > 1e-3, "the rows must differ"


def test_batch_scope_couples_the_rows() -> None:
    """Why several parts of a batch change the objective of the drift head, unless scope is "group"."""
    policy = tiny_policy("drift", head_config=DriftHeadConfig(samples_per_observation=3, scope="batch"))
    batch, draws = tiny_batch(policy, B), policy.draw(B, seeded())
    whole, _ = policy.compute_loss(batch, draws)
    parts = []
    for rows in (slice(0, 3), slice(3, 6)):
        part = {"obs": {"obs": batch["obs"]["obs"][rows]}, "action": batch["action"][rows]}
        parts.append(policy.compute_loss(part, {name: value[rows] for name, value in draws.items()})[0])
    gradients = []
    for loss in (whole, torch.stack(parts).mean()):
        policy.zero_grad()
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.head.parameters()]))  # type: ignore[union-attr]
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.05)


def test_observation_noise_is_drawn_for_numbers_alone_and_after_everything_else() -> None:
    policy = image_policy("drift")
    plain, noisy = policy.draw(B, seeded()), policy.draw(B, seeded(), observation_noise=0.1)
    states = {key for key, spec in policy.config.observations.items() if spec.kind == "state"}
    assert states and set(noisy) - set(plain) == {f"observation_noise.{key}" for key in states}
    assert equal(plain, {name: noisy[name] for name in plain}), "an augmentation must not move the other numbers"
    many = policy.draw(2000, seeded(), observation_noise=0.1)
    for key in states:
        value = many[f"observation_noise.{key}"]
        assert value.shape == (2000, policy.n_obs_steps, *policy.config.observations[key].shape)
        assert abs(float(value.std()) - 0.1) < 0.01


@every_head
def test_observation_noise_changes_what_is_observed_and_nothing_else(head: str) -> None:
    policy = tiny_policy(head).train()
    batch = tiny_batch(policy, B)
    draws = policy.draw(B, seeded(), observation_noise=0.3)
    noise = draws["observation_noise.obs"]
    moved = {**batch, "obs": {"obs": _shifted(policy, batch["obs"]["obs"], noise)}}
    plain = {name: value for name, value in draws.items() if not name.startswith("observation_noise.")}
    torch.testing.assert_close(policy.compute_loss(batch, draws)[0], policy.compute_loss(moved, plain)[0])
    assert not torch.equal(policy.compute_loss(batch, draws)[0], policy.compute_loss(batch, plain)[0])


def test_action_noise_is_drawn_after_everything_else() -> None:
    policy = image_policy("drift")
    plain = policy.draw(B, seeded(), observation_noise=0.1)
    noisy = policy.draw(B, seeded(), observation_noise=0.1, action_noise=0.2)
    assert set(noisy) - set(plain) == {"action_noise"}
    assert equal(plain, {name: noisy[name] for name in plain}), "an augmentation must not move the other numbers"
    many = policy.draw(2000, seeded(), action_noise=0.2)["action_noise"]
    assert many.shape == (2000, policy.horizon, policy.action_dim)
    assert abs(float(many.std()) - 0.2) < 0.01 and abs(float(many.mean())) < 0.01
    assert abs(float((many[:, 1:] * many[:, :-1]).mean())) < 0.002, "every step has a noise of its own"


@every_head
def test_action_noise_displaces_the_demonstration_and_nothing_else(head: str) -> None:
    policy = tiny_policy(head).train()
    batch = tiny_batch(policy, B)
    draws = policy.draw(B, seeded(), action_noise=0.3)
    plain = {name: value for name, value in draws.items() if name != "action_noise"}
    moved = {**batch, "action": _shifted(policy, batch["action"], draws["action_noise"], "action")}
    torch.testing.assert_close(policy.compute_loss(batch, draws)[0], policy.compute_loss(moved, plain)[0])
    assert not torch.equal(policy.compute_loss(batch, draws)[0], policy.compute_loss(batch, plain)[0])


def test_action_noise_displaces_all_positives_of_an_observation_alike() -> None:
    policy = tiny_policy("drift", head_config=DriftHeadConfig(3, kernel="energy")).train()
    batch = tiny_batch(policy, B)
    batch["positives"] = torch.stack([batch["action"], tiny_batch(policy, B, seed=4)["action"]], dim=1)
    batch["positive_weights"] = torch.full((B, 2), 0.5)
    draws = policy.draw(B, seeded(), action_noise=0.3)
    noise = draws.pop("action_noise")
    moved = {**batch, "action": _shifted(policy, batch["action"], noise, "action")}
    moved["positives"] = _shifted(policy, batch["positives"], noise.unsqueeze(1), "action")
    loss, metrics = policy.compute_loss(batch, draws | {"action_noise": noise})
    expected, expected_metrics = policy.compute_loss(moved, draws)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, expected_metrics)


COPIES = PositiveNoise(copies=3, deviation=0.2, steps=2.0)


def test_copies_are_displaced_smoothly_and_drawn_after_everything_else() -> None:
    policy = image_policy("drift")
    plain = policy.draw(B, seeded(), observation_noise=0.1, action_noise=0.1)
    draws = policy.draw(B, seeded(), observation_noise=0.1, action_noise=0.1, positive_noise=COPIES)
    assert set(draws) - set(plain) == {"positive_noise"}
    assert equal(plain, {name: draws[name] for name in plain})
    again = policy.draw(B, seeded(), observation_noise=0.1, action_noise=0.1, positive_noise=COPIES)
    assert equal(draws, again), "all of it comes from the generator"
    noise = policy.draw(4000, seeded(), positive_noise=COPIES)["positive_noise"]
    assert noise.shape == (4000, 3, policy.horizon, policy.action_dim) and noise.dtype == torch.float32
    steps = torch.arange(policy.horizon)
    expected = 0.04 * torch.exp(-(steps - steps[:, None]).square() / 8)  # deviation 0.2, correlation length 2
    found = torch.einsum("bptd,bpsd->ts", noise, noise) / (4000 * 3 * policy.action_dim)
    torch.testing.assert_close(found, expected, atol=0.002, rtol=0)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.002, "copies are displaced independently"
    assert abs(float((noise[..., 0] * noise[..., 1]).mean())) < 0.002, "and so are the numbers of an action"


@pytest.mark.parametrize("steps", [1e-3, 1e6])
def test_copies_may_move_as_a_whole_or_at_every_step_alone(steps: float) -> None:
    noise = tiny_policy("drift").draw(500, seeded(), positive_noise=PositiveNoise(1, 1.0, steps))["positive_noise"]
    assert bool(torch.isfinite(noise).all()) and abs(float(noise.std()) - 1) < 0.05
    change = float(noise.diff(dim=2).abs().max())
    assert change < 1e-3 if steps > 1 else change > 1


@pytest.mark.parametrize("kernel", ["affinity", "energy"])
def test_copies_are_equal_positives_beside_the_demonstration(kernel: str) -> None:
    policy = tiny_policy("drift", head_config=DriftHeadConfig(3, kernel=kernel)).train()
    batch = tiny_batch(policy, B)
    draws = policy.draw(B, seeded(), action_noise=0.1, positive_noise=COPIES)
    displacements = draws["positive_noise"]
    plain = {name: value for name, value in draws.items() if name != "positive_noise"}
    copies = _shifted(policy, batch["action"].unsqueeze(1), displacements, "action")
    given = {
        "positives": torch.cat([batch["action"].unsqueeze(1), copies], dim=1),
        "positive_weights": torch.full((B, 4), 0.25),
    }
    loss, metrics = policy.compute_loss(batch, draws)
    expected, expected_metrics = policy.compute_loss(batch | given, plain)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, expected_metrics)
    assert not torch.equal(loss, policy.compute_loss(batch, plain)[0])
    with pytest.raises(ValueError, match=r"batch\['positives'\] and copies .* cannot be combined"):
        policy.compute_loss(batch | given, draws)


def test_copies_are_for_the_drift_head_alone() -> None:
    policy = tiny_policy("flow")
    with pytest.raises(ValueError, match="drift head alone, not for 'flow'"):
        policy.compute_loss(tiny_batch(policy, B), policy.draw(B, positive_noise=COPIES))


def test_a_loss_that_changes_with_the_step_needs_the_step() -> None:
    head = DriftHeadConfig(3, kernel="energy", regression_weight=1.0, regression_steps=4)
    policy = tiny_policy("drift", head_config=head)
    with pytest.raises(ValueError, match=r"regression_steps=4 changes the loss with the step: .*step=\.\.\."):
        policy.compute_loss(tiny_batch(policy, B))
    plain = tiny_policy("drift", head_config=DriftHeadConfig(3, kernel="energy")).draw(B, seeded())
    scheduled = policy.draw(B, seeded(), step=1)
    assert equal(scheduled, plain | {"regression_weight": torch.full((B,), 0.75)})


def test_another_weight_of_the_regression_compiles_nothing_again() -> None:
    head = DriftHeadConfig(3, kernel="energy", regression_weight=1.0, regression_steps=4)
    policy = tiny_policy("drift", head_config=head).train()
    batch, counter = tiny_batch(policy, B), CompileCounter()
    compiled = torch.compile(policy.compute_loss, backend=counter)
    losses, frames = [], []
    for step in range(3):
        losses.append(compiled(batch, policy.draw(B, seeded(), step=step))[0].item())
        frames.append(counter.frame_count)
    assert frames[0] >= 1 and frames == [frames[0]] * 3
    assert losses[0] > losses[1] > losses[2]


def _shifted(policy: Policy, values: Tensor, noise: Tensor, key: str = "obs") -> Tensor:
    return policy.normalizer.unnormalize(key, policy.normalizer.normalize(key, values) + noise)
