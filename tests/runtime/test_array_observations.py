"""The numpy check of observations says the same as the policy's own, and copies what drivers reuse."""

from typing import Any

import numpy as np
import pytest

from drift_policy import Policy
from drift_policy.metadata_keys import TRAINED_EPISODES
from drift_policy.runtime.observations import (
    ObservationHistory,
    checked_noise,
    checked_observation,
    checked_step,
    stacked,
)
from drift_policy.runtime.spec import describe_policy
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.policies import tiny_obs, tiny_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_image_policy("regression")


def good(policy: Policy) -> dict[str, Any]:
    return {key: value.numpy() for key, value in tiny_obs(policy, 2).items()}


WRONG: dict[str, dict[str, Any]] = {
    "missing key": {"image": None},
    "steps": {"agent_pos": np.zeros((2, 3, 2))},
    "numbers": {"agent_pos": np.zeros((2, 2, 3))},
    "no batch": {"agent_pos": np.zeros((2, 2))},
    "another batch": {"agent_pos": np.zeros((3, 2, 2))},
    "NaN": {"agent_pos": np.full((2, 2, 2), np.nan)},
    "channels last": {"image": np.zeros((2, 2, 10, 12, 3), np.uint8)},
    "float image of bytes": {"image": np.full((2, 2, 3, 10, 12), 200.0)},
    "NaN image": {"image": np.full((2, 2, 3, 10, 12), np.nan)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_policy_refuses_is_refused_in_the_same_words(policy: Policy, name: str) -> None:
    obs = {key: value for key, value in (good(policy) | WRONG[name]).items() if value is not None}
    with pytest.raises(ValueError) as expected:
        policy.predict_action(obs)
    with pytest.raises(ValueError) as found:
        checked_observation(describe_policy(policy), obs)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "change",
    [
        {"agent_pos": np.zeros((1, 2))},
        {"agent_pos": np.full(2, np.inf)},
        {"image": np.zeros((10, 12, 3), np.uint8)},
        {"image": np.full((3, 10, 12), 7.0)},
    ],
)
def test_one_step_is_refused_in_the_same_words(policy: Policy, change: dict[str, Any]) -> None:
    obs = {key: value[0, 0] for key, value in good(policy).items()} | change
    with pytest.raises(ValueError) as expected:
        policy.select_action(obs)
    with pytest.raises(ValueError) as found:
        checked_step(describe_policy(policy), obs)
    assert str(found.value) == str(expected.value)


def test_integer_images_and_text_are_refused(policy: Policy) -> None:
    spec = describe_policy(policy)
    with pytest.raises(ValueError, match=r"obs\['image'\] is an image of int64"):
        checked_observation(spec, good(policy) | {"image": np.zeros((2, 2, 3, 10, 12), np.int64)})
    with pytest.raises(ValueError, match=r"obs\['agent_pos'\] holds .*give numbers"):
        checked_observation(spec, good(policy) | {"agent_pos": np.full((2, 2, 2), "left")})
    with pytest.raises(ValueError, match=r"obs\['agent_pos'\] holds complex128: give numbers"):
        checked_observation(spec, good(policy) | {"agent_pos": np.ones((2, 2, 2), complex)})


def test_float_images_may_be_outside_by_rounding_alone(policy: Policy) -> None:
    spec, shape = describe_policy(policy), (2, 2, 3, 10, 12)
    for value in (-5e-4, 1 + 5e-4):
        checked_observation(spec, good(policy) | {"image": np.full(shape, value)})
    for value in (-5e-3, 1 + 5e-3):
        with pytest.raises(ValueError, match=r"give float images in 0\.\.1"):
            checked_observation(spec, good(policy) | {"image": np.full(shape, value)})


def test_a_spec_has_the_metadata_but_not_the_list_of_episodes() -> None:
    policy = tiny_policy()
    policy.metadata |= {"control_hz": 12, TRAINED_EPISODES: [0, 1]}
    assert describe_policy(policy).metadata == {"task": "tiny", "control_hz": 12}


def test_a_batch_of_none_is_one(policy: Policy) -> None:
    obs = {"agent_pos": np.zeros((0, 2, 2)), "image": np.zeros((0, 2, 3, 10, 12))}
    assert {key: len(value) for key, value in checked_observation(describe_policy(policy), obs).items()} == {
        "agent_pos": 0,
        "image": 0,
    }


def test_noise_is_of_one_candidate_or_of_all_and_finite() -> None:
    one, three = (describe_policy(tiny_policy(num_candidates=number)) for number in (1, 3))
    single, several = np.ones((2, 6, 2)), np.ones((2, 3, 6, 2))
    assert checked_noise(one, single, 2).shape == checked_noise(three, single, 2).shape == (2, 6, 2)
    assert checked_noise(one, single[:, None], 2).shape == (2, 6, 2)
    assert checked_noise(three, several, 2).shape == (2, 3, 6, 2)
    for spec, wrong in ((one, several), (three, several[:, :2]), (one, single[:1])):
        with pytest.raises(ValueError, match="noise must be an array of shape"):
            checked_noise(spec, wrong, 2)
    for missing in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            checked_noise(one, np.full((2, 6, 2), missing), 2)


def test_numbers_become_float32_and_bytes_stay_bytes(policy: Policy) -> None:
    obs = good(policy) | {"agent_pos": np.ones((2, 2, 2), np.float64)}
    checked = checked_observation(describe_policy(policy), obs)
    assert {key: value.dtype.name for key, value in checked.items()} == {"image": "uint8", "agent_pos": "float32"}


def test_a_single_key_may_be_given_bare() -> None:
    spec = describe_policy(tiny_policy())
    assert checked_observation(spec, np.zeros((1, 2, 5)))["obs"].shape == (1, 2, 5)
    with pytest.raises(ValueError, match="must be a dictionary"):
        checked_observation(describe_policy(tiny_image_policy()), np.zeros(3))


def test_the_history_fills_up_with_the_first_observation_and_copies() -> None:
    history = ObservationHistory(describe_policy(tiny_policy(n_obs_steps=3)))
    buffer = np.zeros(5, np.float32)
    for step in range(1, 5):
        buffer[:] = step
        history.append({"obs": buffer})
        expected = [max(step - 2, 1), max(step - 1, 1), step]
        assert stacked(history.window())["obs"][0, :, 0].tolist() == expected
    history.clear()
    history.append(buffer)
    assert stacked(history.window())["obs"].shape == (1, 3, 5)
    assert stacked(history.window())["obs"][0, :, 0].tolist() == [4, 4, 4]
