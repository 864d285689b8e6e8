"""Push-T in the mirror: the environment itself says whether a mirrored demonstration is one."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs  # noqa: F401  (registers the environment)
from envs.pusht import block_keypoints
from envs.pusht.symmetry import mirror

GOLDEN = Path(__file__).parents[1] / "golden" / "pusht_env"
GOAL = [256.0, 256.0, np.pi / 4]


def mirrored_state(state: np.ndarray) -> np.ndarray:
    return mirror({"state": np.asarray(state, dtype=np.float64)[None]})["state"][0]


def test_the_goal_is_its_own_mirror_image() -> None:
    np.testing.assert_allclose(mirrored_state(np.array([100.0, 200.0, *GOAL])), [312, 412, *GOAL], atol=1e-12)


@given(st.lists(st.floats(0, 512), min_size=4, max_size=4), st.floats(0, 6.28))
def test_twice_is_the_original_and_keypoints_are_those_of_the_pose(place: list[float], angle: float) -> None:
    state = np.array([[*place, angle]])
    keypoints = block_keypoints(place[2:], angle)[None]
    steps = {"state": state, "keypoint": keypoints, "action": state[:, :2]}
    once = mirror(steps)
    pose = once["state"][0]
    np.testing.assert_allclose(once["keypoint"][0], block_keypoints(pose[2:4], pose[4]), atol=1e-9)
    np.testing.assert_allclose(once["action"], once["state"][:, :2], atol=1e-12)
    twice = mirror(once)
    for name, column in steps.items():
        difference = twice[name] - column
        if name == "state":
            difference[:, 4] = (difference[:, 4] + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(difference, 0, atol=1e-9)


@pytest.mark.parametrize("episode", range(4))
def test_the_environment_goes_the_same_way_in_the_mirror(episode: int) -> None:
    with np.load(GOLDEN / "rollouts.npz", allow_pickle=False) as file:
        actions, start = file["actions"][episode], file["state"][episode][0]
    env, image = (gym.make("drift_policy/PushT-v0", obs_type="state") for _ in range(2))
    env.reset(options={"state": start})
    image.reset(options={"state": mirrored_state(start)})
    moved = 0.0
    for action in actions[:15]:  # contacts amplify rounding, so that long episodes part
        state, reward, *_ = env.step(action)
        image_state, image_reward, *_ = image.step(mirror({"action": action[None]})["action"][0])
        expected = mirrored_state(state)
        np.testing.assert_allclose(image_state[:4], expected[:4], atol=0.5)
        assert abs((image_state[4] - expected[4] + np.pi) % (2 * np.pi) - np.pi) < 0.005
        assert image_reward == pytest.approx(reward, abs=0.01)
        moved = max(moved, float(np.abs(state[2:4] - start[2:4]).max()))
    env.close(), image.close()


def test_the_picture_is_the_transposed_one_and_columns_without_an_image_are_refused() -> None:
    pictures = []
    for state in (
        np.array([100.0, 300.0, 200.0, 220.0, 1.0]),
        mirrored_state(np.array([100.0, 300.0, 200.0, 220.0, 1.0])),
    ):
        env = gym.make("drift_policy/PushT-v0", obs_type="image")
        observation, _ = env.reset(options={"state": state})
        pictures.append(np.moveaxis(observation["image"], 0, -1)[None])
        env.close()
    shown = mirror({"img": pictures[0]})["img"]
    difference = np.abs(shown - pictures[1]).max(axis=-1)
    assert (difference > 0.2).mean() < 0.03  # edges move by less than a pixel
    assert (np.abs(pictures[0] - pictures[1]).max(axis=-1) > 0.2).mean() > 0.05
    with pytest.raises(KeyError, match="no mirror image is known of n_contacts"):
        mirror({"n_contacts": np.zeros((3, 1))})
    with pytest.raises(KeyError, match="needs the column 'state'"):
        mirror({"keypoint": np.zeros((3, 9, 2))})
