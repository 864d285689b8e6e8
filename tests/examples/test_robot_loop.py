"""The real-time loop: what it counts, and that the world does not wait."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the package `matplotlib` of the train extra")
gym: Any = pytest.importorskip("gymnasium", reason="needs the package `gymnasium` of the sim extra")

from drift_policy.runtime.receding_horizon import RecedingHorizon  # noqa: E402  # after the packages are there
from examples import robot_loop  # noqa: E402
from tests.helpers.scripted_policy import ScriptedPolicy  # noqa: E402


class Counter(gym.Env[np.ndarray, np.ndarray]):
    """Shows the number of its step, and keeps its actions; 40 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self) -> None:
        self.actions: list[float] = []

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.actions = []
        return np.zeros(1), {"pos_agent": [0.0]}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(float(action[0]))
        number = len(self.actions)
        return np.array([float(number)]), number / 40, number == 40, False, {}


class SlowPolicy(ScriptedPolicy):
    """Takes 50 ms for its third decision."""

    def predict_action(self, obs: dict[str, np.ndarray], **options: Any) -> dict[str, Any]:
        if len(self.observed) == 2:
            time.sleep(0.05)
        return super().predict_action(obs, **options)


def test_the_world_goes_on_with_the_last_action_while_the_policy_decides() -> None:
    env, recording = Counter(), robot_loop.Recording()
    world = robot_loop.World(env, 0)
    loop = RecedingHorizon(SlowPolicy(), 100.0, compensate_latency=False)
    robot_loop.run_episode(world, loop, 0.01, 20.0, recording)
    assert world.is_over
    assert recording.num_missed >= 4
    assert len(recording.lateness) + recording.num_missed + 1 >= 40
    assert max(recording.latencies) > 0.05
    # The third decision is due at step 8 at the latest: four steps or more repeat an action that was executed before.
    assert len(env.actions) - len(set(env.actions)) >= 4
    assert np.isfinite(env.actions).all()


def test_waiting_ends_after_the_deadline() -> None:
    deadline = time.perf_counter() + 0.003
    robot_loop.wait_until(deadline)
    assert time.perf_counter() >= deadline
    robot_loop.wait_until(deadline)  # one that has passed is not waited for


def test_the_program_writes_numbers_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gym_pusht", reason="needs the package `gym-pusht` of the sim extra")
    pytest.importorskip("diffusers", reason="needs the package `diffusers` of the train extra")
    arguments = ["--hz", "50", "--seconds", "0.3", "--output", str(tmp_path / "loop.json")]
    monkeypatch.setattr(sys, "argv", ["robot_loop", *arguments, "--picture", str(tmp_path / "loop.png")])
    robot_loop.main()
    content = json.loads((tmp_path / "loop.json").read_text())
    assert content["diffusion_weights"] == "random weights: times only"
    assert content["num_evaluations"] == {"drift": 1, "diffusion": 100}
    cases = {(case["policy"], case["loop"]) for case in content["cases"]}
    assert cases == {(policy, loop) for policy in ("drift", "diffusion") for loop in robot_loop.MODES}
    assert all(case["control_steps"] > 0 for case in content["cases"])
    assert (tmp_path / "loop.png").read_bytes().startswith(b"\x89PNG")
