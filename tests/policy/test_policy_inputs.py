"""Wrong observations and noise are refused with a message that names them and what is expected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy import Policy
from drift_policy.data.normalizer import Normalizer
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.policy import build_policy
from tests.helpers.policies import HEAD_NAMES, tiny_batch, tiny_config, tiny_normalizer, tiny_obs, tiny_policy

B, TO, DA = 3, 2, 2


def with_entry(value: float) -> torch.Tensor:
    tensor = torch.zeros(B, TO, 4)
    tensor[1, 0, 2] = value
    return tensor


@pytest.fixture
def policy() -> Policy:
    return tiny_policy(observations={"pose": 4, "goal": 1})


GOOD: dict[str, Any] = {"pose": torch.zeros(B, TO, 4), "goal": torch.zeros(B, TO, 1)}
WRONG: list[tuple[str, dict[str, Any]]] = [
    (r"obs\['pose'\] must have shape \[B, 2, 4\].* has \[3, 4\]", {"pose": torch.zeros(B, 4)}),
    (r"obs\['pose'\] must have shape \[B, 2, 4\].* has \[4\]", {"pose": torch.zeros(4)}),
    (r"obs\['pose'\] must have shape \[B, 2, 4\].* has \[3, 2, 4, 1\]", {"pose": torch.zeros(B, TO, 4, 1)}),
    (r"obs\['pose'\] must have shape \[B, 2, 4\].* has \[3, 1, 4\]", {"pose": torch.zeros(B, 1, 4)}),
    (r"obs\['pose'\] must have shape \[B, 2, 4\].* has \[3, 3, 4\]", {"pose": np.zeros((B, 3, 4))}),
    (r"obs\['goal'\] must have shape \[B, 2, 1\].* has \[3, 2, 4\]", {"goal": torch.zeros(B, TO, 4)}),
    (r"obs\['goal'\] has batch size 2, but another key has 3", {"goal": torch.zeros(2, TO, 1)}),
    (r"obs\['pose'\] holds NaN or infinity", {"pose": with_entry(float("nan"))}),
    (r"obs\['pose'\] holds NaN or infinity", {"pose": with_entry(float("-inf")).numpy()}),
]


@pytest.mark.parametrize(("message", "wrong"), WRONG)
def test_a_wrong_observation_is_named(policy: Policy, message: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        policy.predict_action(GOOD | wrong)
    with pytest.raises(ValueError, match=message):
        policy.sample_actions(GOOD | wrong, 2)
    assert policy.predict_action(GOOD)["action"].shape == (B, 3, DA)


@pytest.mark.parametrize("missing", ["pose", "goal"])
def test_a_missing_key_is_named_with_the_given_ones(policy: Policy, missing: str) -> None:
    given = {key: value for key, value in GOOD.items() if key != missing}
    with pytest.raises(ValueError, match=rf"lacks the key '{missing}': it has \['{next(iter(given))}'\]"):
        policy.predict_action(given)


def test_a_bare_array_needs_a_policy_with_one_key(policy: Policy) -> None:
    with pytest.raises(ValueError, match=r"dictionary with the keys \['pose', 'goal'\]"):
        policy.predict_action(torch.zeros(B, TO, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dictionary with the keys \['pose', 'goal'\]"):
        policy.select_action(torch.zeros(4))


@pytest.mark.parametrize(
    "shape",
    [(B, 6), (6, DA), (B, 5, DA), (B, 6, 3), (2, 6, DA), (B, 0, 6, DA), (2, 4, 6, DA), (B, 4, 6, 3), (B, 1, 4, 6, DA)],
    ids=str,
)
def test_a_wrong_noise_shape_is_named(policy: Policy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"noise must have shape \[3, 6, 2\], but has") as error:
        policy.predict_action(GOOD, noise=torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_noise_that_is_not_finite_is_refused(policy: Policy, value: float) -> None:
    noise = torch.zeros(B, 6, DA)
    noise[1, 2, 1] = value
    with pytest.raises(ValueError, match="noise holds NaN or infinity"):
        policy.predict_action(GOOD, noise=noise)


@pytest.mark.parametrize("number", [B - 1, B + 1])
def test_there_is_one_generator_for_each_observation(policy: Policy, number: int) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(number)]
    for call in (policy.predict_action, lambda obs, **options: policy.sample_actions(obs, 2, **options)):
        with pytest.raises(ValueError, match=f"generator has {number} entries, but there are 3 observations"):
            call(GOOD, generator=generators)


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_a_policy_without_normaliser_says_so(head: str) -> None:
    policy = build_policy(tiny_config(head)).eval()
    for call in (
        lambda: policy.predict_action(tiny_obs(policy)),
        lambda: policy.select_action(torch.zeros(5)),
        lambda: policy.compute_loss(tiny_batch(policy)),
    ):
        with pytest.raises(CheckpointError, match="set_normalizer"):
            call()
    policy.set_normalizer(tiny_normalizer(policy.config))
    assert bool(policy.predict_action(tiny_obs(policy))["action"].isfinite().all())


@pytest.mark.parametrize(
    "sizes", [{"obs": 4, "action": 2}, {"obs": 5, "action": 3}, {"obs": 5}, {"obs": 5, "action": 2, "extra": 1}]
)
def test_a_normaliser_of_other_sizes_is_refused(sizes: dict[str, int]) -> None:
    policy = tiny_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    other = Normalizer.fit({key: torch.tensor([[-7.0], [7.0]]).expand(2, size) for key, size in sizes.items()})
    with pytest.raises(ConfigurationError, match="normaliser has the sizes") as error:
        policy.set_normalizer(other)
    assert str(sizes) in str(error.value) and str({"obs": 5, "action": 2}) in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_the_policy_copies_the_normaliser_into_its_state() -> None:
    policy = build_policy(tiny_config())
    normalizer = tiny_normalizer(policy.config)
    policy.set_normalizer(normalizer)
    names = {"normalizer.scale_obs", "normalizer.offset_obs", "normalizer.scale_action", "normalizer.offset_action"}
    assert names <= policy.state_dict().keys()
    normalizer.get_buffer("scale_action").zero_()
    assert bool((policy.normalizer.get_buffer("scale_action") != 0).all())


def test_wrong_sizes_in_a_batch_are_refused() -> None:
    policy = tiny_policy()
    batch = tiny_batch(policy)
    for wrong in (batch["action"][:, :5], batch["action"][:, :, :1], batch["action"][0]):
        with pytest.raises(ValueError, match=r"batch\['action'\] must have shape \[B, 6, 2\].*, but has") as error:
            policy.compute_loss(batch | {"action": wrong})
        assert str(list(wrong.shape)) in str(error.value)
    with pytest.raises(ValueError, match="expected"):
        policy.compute_loss(batch | {"obs": batch["obs"]["obs"][:2]})
    batch["action"][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        policy.compute_loss(batch)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.double])
def test_a_batch_may_hold_arrays_and_doubles(convert: Callable[[torch.Tensor], Any]) -> None:
    policy = tiny_policy()
    batch, draws = tiny_batch(policy), policy.draw(len(tiny_batch(policy)["action"]))
    given = {"obs": {key: convert(value) for key, value in batch["obs"].items()}, "action": convert(batch["action"])}
    loss, _ = policy.compute_loss(given, draws)
    assert torch.equal(loss, policy.compute_loss(batch, draws)[0])


def test_a_batch_may_hold_the_bare_observation_of_a_policy_with_one_key() -> None:
    policy = tiny_policy("regression")
    batch = tiny_batch(policy)
    bare, _ = policy.compute_loss(batch | {"obs": batch["obs"]["obs"]})
    named, _ = policy.compute_loss(batch)
    assert torch.equal(bare, named)


def test_arrays_that_run_backwards_are_taken_as_they_read() -> None:
    policy = tiny_policy(observations={"pose": 4})
    pose = np.arange(B * TO * 4, dtype=np.float32).reshape(B, TO, 4)
    chunk = policy.predict_action({"pose": pose[..., ::-1]}, noise_scale=0.0)["action"]
    assert torch.equal(chunk, policy.predict_action({"pose": pose[..., ::-1].copy()}, noise_scale=0.0)["action"])
    assert policy.select_action({"pose": pose[0, 0, ::-1]}).shape == (DA,)


@pytest.mark.parametrize("value", [None, "abc", {}])
def test_what_is_no_array_is_named(policy: Policy, value: Any) -> None:
    with pytest.raises(ValueError, match=r"obs\['goal'\] is no array of numbers"):
        policy.predict_action(GOOD | {"goal": value})
    with pytest.raises(ValueError, match=r"obs\['goal'\] is no array of numbers"):
        policy.compute_loss(tiny_batch(policy) | {"obs": GOOD | {"goal": value}})


def test_a_training_batch_may_hold_arrays_that_run_backwards(policy: Policy) -> None:
    batch, draws = tiny_batch(policy), policy.draw(B, torch.Generator().manual_seed(0))
    obs = {key: value.numpy()[..., ::-1] for key, value in batch["obs"].items()}
    copied = {key: value.copy() for key, value in obs.items()}
    backwards, expected = (policy.compute_loss(batch | {"obs": given}, draws)[0] for given in (obs, copied))
    assert torch.equal(backwards, expected)


@pytest.mark.parametrize(
    ("message", "batch"),
    [
        (r"batch lacks 'obs': it has \['action', 'pose'\]", {"pose": torch.zeros(B, TO, 4)}),
        (r"lacks the key 'goal'", {"obs": {"pose": torch.zeros(B, TO, 4)}}),
        (
            r"batch\['obs'\]\['pose'\] must have shape \[B, 2, 4\] .* has \[3, 8, 4\]",
            {"obs": GOOD | {"pose": torch.zeros(B, 8, 4)}},
        ),
        (
            r"batch\['obs'\]\['goal'\] must have shape \[B, 2, 1\] .* has \[3, 2, 2\]",
            {"obs": GOOD | {"goal": torch.zeros(B, TO, 2)}},
        ),
    ],
)
def test_a_training_batch_of_another_layout_is_named(policy: Policy, message: str, batch: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        policy.compute_loss({"action": torch.zeros(B, policy.horizon, DA), **batch})
