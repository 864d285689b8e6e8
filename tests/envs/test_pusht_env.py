"""Push-T as a Gymnasium environment: spaces, starts, ends, rendering, wrong input, cheap import."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import envs  # noqa: F401  (registers the environment)
from envs.pusht import PushTEnv

ENV_ID = "drift_policy/PushT-v0"
ROOT = Path(__file__).parents[2]
AT_GOAL = [100.0, 100.0, 256.0, 256.0, np.pi / 4]


def make(obs_type: str = "state", **kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(ENV_ID, obs_type=obs_type, **kwargs)


@pytest.mark.parametrize("obs_type", ["keypoints", "state", "image"])
def test_gymnasium_checker_is_content(obs_type: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Actions are pixels of the board; the advice to scale them to [-1, 1] does not apply.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")
        check_env(make(obs_type, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize(("obs_type", "shape"), [("keypoints", (20,)), ("state", (5,))])
def test_vector_observations(obs_type: str, shape: tuple[int, ...]) -> None:
    env = make(obs_type)
    obs, _ = env.reset(seed=0)
    assert obs.shape == shape and obs.dtype == np.float64
    assert env.action_space == gym.spaces.Box(0, 512, (2,), np.float32)


@pytest.mark.parametrize("seed", [9, 18])
def test_a_block_pushed_over_the_edge_stays_in_the_observation_space(seed: int) -> None:
    env = PushTEnv(obs_type="keypoints")
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    highest = 0.0
    for step in range(100):
        target = env.block.position if step % 4 else rng.choice([0, 512], 2)
        obs = env.step(np.clip(target, 0, 512))[0]
        assert isinstance(obs, np.ndarray) and obs in env.observation_space
        highest = max(highest, float(obs.max()))
    assert highest > 550


def test_a_seed_fixes_the_start_and_the_resets_after_it() -> None:
    env = make()
    first = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
    again = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
    np.testing.assert_array_equal(first, again)
    assert len({tuple(obs) for obs in first}) == 3


def test_without_a_seed_the_start_is_random() -> None:
    starts = {tuple(make().reset()[0]) for _ in range(4)}
    assert len(starts) == 4


@settings(max_examples=30)
@given(
    x=st.floats(170, 340), y=st.floats(170, 340), angle=st.floats(-7, 7), corner=st.sampled_from([(30, 30), (480, 40)])
)
def test_the_state_option_is_the_state_observed(x: float, y: float, angle: float, corner: tuple[int, int]) -> None:
    obs, info = make().reset(options={"state": [*corner, x, y, angle]})
    np.testing.assert_allclose(obs[:4], [*corner, x, y], atol=1e-9)
    np.testing.assert_allclose(info["block_pose"][2], angle, atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * obs[4]), np.exp(1j * angle), atol=1e-9)


def test_a_block_on_its_goal_ends_the_episode_with_success() -> None:
    env = make()
    _, info = env.reset(options={"state": AT_GOAL})
    assert info["is_success"] and info["coverage"] == pytest.approx(1.0)
    _, reward, terminated, truncated, info = env.step(np.array([100, 100], dtype=np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)
    assert isinstance(reward, float) and info["coverage"] == pytest.approx(1.0)


def test_the_success_threshold_lies_at_95_percent() -> None:
    env = make()
    outcomes = []
    for shift in np.linspace(0, 8, 17):
        _, info = env.reset(options={"state": [100, 100, 256 + shift, 256, np.pi / 4]})
        _, reward, terminated, _, info = env.step(np.array([100, 100], dtype=np.float32))
        assert terminated == info["is_success"] == (info["coverage"] > 0.95)
        assert reward == pytest.approx(min(info["coverage"] / 0.95, 1.0))
        outcomes.append(terminated)
    assert True in outcomes and False in outcomes


def test_info_keys_are_the_same_after_reset_and_step() -> None:
    env = make()
    _, at_reset = env.reset(seed=0)
    *_, at_step = env.step(np.array([250, 250], dtype=np.float32))
    keys = {"coverage", "is_success", "n_contacts", "pos_agent", "vel_agent", "block_pose", "goal_pose"}
    assert set(at_reset) == set(at_step) == keys


def test_truncation_after_300_steps() -> None:
    env = make()
    env.reset(options={"state": [20, 20, 256, 256, 0.0]})
    truncations = [env.step(np.array([20, 20], dtype=np.float32))[3] for _ in range(300)]
    assert truncations == [False] * 299 + [True]


@pytest.mark.parametrize("size", [96, 256, 300])
def test_frames_show_goal_block_agent_and_target(size: int) -> None:
    env = PushTEnv(render_mode="rgb_array", render_size=size)
    env.reset(options={"state": [100, 400, 400, 100, 0.0]})

    def colour(x: float, y: float) -> list[int]:
        pixel: list[int] = env.render()[int(y * size / 512), int(x * size / 512)].tolist()
        return pixel

    assert env.render().shape == (size, size, 3) and env.render().dtype == np.uint8
    assert colour(256, 275) == [144, 238, 144]  # the goal: light green
    red, green, blue = colour(400, 130)  # the block: slate grey
    assert red < green < blue < 200
    red, green, blue = colour(100, 400)  # the agent: royal blue
    assert blue > 200 > red
    env.step(np.array([256, 480], dtype=np.float32))
    assert colour(256, 480) == [255, 0, 0]  # the target: a red cross
    env.reset(seed=0)
    assert not np.all(env.render() == np.array([255, 0, 0]), axis=-1).any()


def test_the_target_cross_is_not_in_image_observations() -> None:
    env = make("image")
    env.reset(options={"state": [100, 400, 400, 100, 0.0]})
    image = env.step(np.array([256, 480], dtype=np.float32))[0]["image"]
    red = np.array([1, 0, 0], dtype=np.float32)[:, None, None]
    assert not (image == red).all(axis=0).any()


@pytest.mark.parametrize("obs_type", ["keypoints", "state"])
def test_nothing_is_drawn_unless_asked(obs_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: PushTEnv) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(PushTEnv, "_draw", forbidden)
    env = make(obs_type, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.array([250, 250], dtype=np.float32))
    with pytest.raises(AssertionError, match="drawn"):
        env.render()


@pytest.mark.parametrize("action", [[np.nan, 1.0], [1.0, np.inf], [-np.inf, 1.0]])
def test_actions_that_are_not_finite_are_refused(action: list[float]) -> None:
    env = PushTEnv(obs_type="state")
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="must be finite"):
        env.step(action)
    np.testing.assert_array_equal(env.get_obs(), before)


@pytest.mark.parametrize("action", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], 1.0])
def test_actions_of_another_shape_are_refused(action: Any) -> None:
    env = PushTEnv(obs_type="state")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        env.step(action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [1, 2, 3, 4]}, "five numbers"),
        ({"state": [[1, 2, 3, 4, 5]]}, "five numbers"),
        ({"state": None}, "five numbers"),
        ({"state": ["a", 2, 3, 4, 5]}, "five numbers"),
        ({"state": [100, 100, np.nan, 100, 0]}, "finite"),
        ({"state": [100, 100, 100, 100, np.inf]}, "finite"),
        ({"state": [100, 100, 5000, 100, 0]}, "-256..768"),
        ({"states": AT_GOAL}, "unknown reset options"),
    ],
)
def test_reset_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PushTEnv().reset(options=options)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_beyond_the_benchmark_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="Seed must be between 0 and 2"):
        PushTEnv().reset(seed=seed)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"obs_type": "pixels"}, "keypoints, state, image"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"render_size": 64}, "at least 96"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PushTEnv(**kwargs)


def test_render_without_a_render_mode_is_refused() -> None:
    env = PushTEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="render_mode"):
        env.render()


def run_python(code: str, **variables: str) -> str:
    hidden = {"DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_registers_without_loading_a_simulator() -> None:
    code = (
        "import sys, os, envs, gymnasium as gym;"
        "loaded = [m for m in ('pygame', 'pymunk', 'shapely', 'cv2', 'gym_pusht', 'torch') if m in sys.modules];"
        f"print(loaded, gym.spec({ENV_ID!r}).max_episode_steps, os.environ.get('SDL_VIDEODRIVER'))"
    )
    assert run_python(code) == "[] 300 None"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a screen")
@pytest.mark.parametrize(
    ("variables", "driver"),
    [({}, "dummy"), ({"DISPLAY": ":0"}, "None"), ({"SDL_VIDEODRIVER": "offscreen"}, "offscreen")],
)
def test_the_dummy_video_driver_only_without_a_screen(variables: dict[str, str], driver: str) -> None:
    assert run_python("import os, envs.pusht; print(os.environ.get('SDL_VIDEODRIVER'))", **variables) == driver
