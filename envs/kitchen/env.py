"""Franka Kitchen by Diffusion Policy's protocol, on gymnasium-robotics' FrankaKitchen-v1."""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from farama_notifications import notifications
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from drift_policy.data.readers.kitchen_mjl import NOISE_AMPLITUDE
from envs.kitchen.observations import N_POSITIONS, N_ROBOT, N_VELOCITIES, with_goal
from envs.rendering import choose_backend

# gymnasium-robotics prints a notice about a change of its rewards, which are not used here, in every worker process.
notifications.pop("gymnasium_robotics", None)

from gymnasium_robotics.envs.franka_kitchen.kitchen_env import (  # noqa: E402  (after the notice is off)
    BONUS_THRESH,
    OBS_ELEMENT_GOALS,
    OBS_ELEMENT_INDICES,
)
from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv as FrankaKitchenEnv  # noqa: E402

TASKS = tuple(OBS_ELEMENT_GOALS)
DEMONSTRATED = 4  # subtasks of a demonstration
START_OPTIONS = {"qpos": N_POSITIONS, "qvel": N_VELOCITIES}
OBS_TYPES = {"state_goal": 2 * N_POSITIONS, "state": N_POSITIONS}
ACTION_MODES = ("velocity", "absolute")


class KitchenEnv(gym.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Open, turn, switch and move things in a kitchen; made by `gym.make("drift_policy/Kitchen-v0", ...)`.

    Physics, subtasks, goals, the rule that a subtask is done (its joints are within a distance of 0.3 of the goal) and
    the start are those of gymnasium-robotics' FrankaKitchen-v1 with all seven subtasks. Observation, noise and protocol
    are Diffusion Policy's. Control runs at 12.5 Hz: each step is 40 physics steps of 0.002 s.

    Action with `action_mode="velocity"`: `Box(-1, 1, (9,), float32)`, velocities of seven joints and two fingers in
    units of 2 rad/s and 2 m/s, as in D4RL, Minari and Diffusion Policy's numpy demonstrations. The position target is
    the last observed position, noise included, plus the velocity times 0.08 s. With `action_mode="absolute"`: a Box of
    the joints' limits, position targets in radians and metres, as in the .mjl logs. What lies outside is clipped.

    Observation: float64. `obs_type="state_goal"`: [60], nine joint positions, 21 object positions and the goal of relay
    policy learning, which Diffusion Policy masks with zeros. `obs_type="state"`: the 30 positions alone.
    envs.kitchen.observations maps them to gymnasium-robotics' 59 numbers.

    Reward: the number of subtasks done so far over 4, at most 1. A demonstration does four of the seven; the highest
    reward of an episode, which evaluation takes as its score, is therefore the mean of p1 to p4. An episode terminates
    when all seven are done; `gym.make` truncates it after 280 steps. A subtask that is done stays done.

    Info: `n_completed` (int), `completed_tasks` (names in the order they were done), `is_success` (at least four done).

    Start: always the same state; `reset(seed=s)` seeds the noise. `reset(options={"qpos": [30], "qvel": [29]})` starts
    in the state that is given, for example where a demonstration did.

    Args:
        render_mode: None or "rgb_array".
        render_size: side of the frames that `render` returns, in pixels.
        obs_type: "state_goal" or "state".
        action_mode: "velocity" or "absolute".
        robot_noise_ratio: uniform noise on all 30 observed positions, as a share of the original's amplitudes (0.1 rad
            for joints; see NOISE_AMPLITUDE). 0.1 is D4RL's and Diffusion Policy's, 0 is none.

    Raises:
        ValueError: an argument, action or reset option that does not fit; the message says what does.
        ConfigurationError: `render_mode` is given, but MuJoCo cannot render on this machine.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 12}

    def __init__(
        self,
        render_mode: str | None = None,
        render_size: int = 256,
        obs_type: Literal["state_goal", "state"] = "state_goal",
        action_mode: Literal["velocity", "absolute"] = "velocity",
        robot_noise_ratio: float = 0.1,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"Kitchen: render_mode is {render_mode!r}; use None or 'rgb_array'.")
        if render_size < 1:
            raise ValueError(f"Kitchen: render_size is {render_size}; use at least 1 pixel.")
        if obs_type not in OBS_TYPES:
            raise ValueError(f"Kitchen: obs_type is {obs_type!r}; use one of {', '.join(OBS_TYPES)}.")
        if action_mode not in ACTION_MODES:
            raise ValueError(f"Kitchen: action_mode is {action_mode!r}; use one of {', '.join(ACTION_MODES)}.")
        if not 0 <= robot_noise_ratio < np.inf:
            raise ValueError(f"Kitchen: robot_noise_ratio is {robot_noise_ratio}; use 0 or more.")
        if render_mode is not None:
            choose_backend()
        self.render_mode = render_mode
        self._obs_type, self._action_mode, self._noise_ratio = obs_type, action_mode, robot_noise_ratio
        # Noise is added here: gymnasium-robotics takes other amplitudes for the objects, and less of it.
        self._kitchen = FrankaKitchenEnv(
            robot_noise_ratio=0.0,
            object_noise_ratio=0.0,
            render_mode=render_mode,
            width=render_size,
            height=render_size,
        )
        self._robot = self._kitchen.robot_env
        self._completed: list[str] = []
        self._observed = np.zeros(N_POSITIONS)
        self._simplify_rendering(render_size)
        low, high = np.full(N_ROBOT, -1.0), np.full(N_ROBOT, 1.0)
        if action_mode == "absolute":
            low, high = self._robot.robot_pos_bound[:N_ROBOT].T
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBS_TYPES[obs_type],), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; the class docstring says where.

        Args:
            seed: seeds the observation noise, also of later resets without a seed.
            options: {"qpos": [30], "qvel": [29]} fixes the state.

        Raises:
            ValueError: an unknown or missing option, or one of another shape or not finite.
        """
        start = checked_start(options) if options else None
        super().reset(seed=seed)
        self._kitchen.reset()
        if start is not None:
            self._robot.set_state(start["qpos"], start["qvel"])
        self._completed = []
        return self._observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Move for 0.08 s as `action` [9] says.

        Returns:
            observation, reward, terminated, truncated (always False; `gym.make` adds the time limit) and info.

        Raises:
            ValueError: an action that is not nine finite numbers.
        """
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (N_ROBOT,):
            raise ValueError(f"Kitchen: the action has shape {command.shape}; give {N_ROBOT} numbers, one a joint.")
        if not np.isfinite(command).all():
            raise ValueError(f"Kitchen: the action is {command.tolist()}; all numbers must be finite.")
        self._robot.do_simulation(self._position_target(command), self._robot.frame_skip)
        for task in TASKS:
            if task not in self._completed and self.distance(task) < BONUS_THRESH:
                self._completed.append(task)
        reward = min(len(self._completed) / DEMONSTRATED, 1.0)
        return self._observe(), reward, len(self._completed) == len(TASKS), False, self._info()

    def distance(self, task: str) -> float:
        """Euclidean distance of a subtask's joints from its goal, without noise; it is done below 0.3."""
        return float(np.linalg.norm(self._robot.data.qpos[OBS_ELEMENT_INDICES[task]] - OBS_ELEMENT_GOALS[task]))

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The state of the simulator without noise, as `reset` takes it as options."""
        return {"qpos": self._robot.data.qpos.copy(), "qvel": self._robot.data.qvel.copy()}

    def render(self) -> NDArray[np.uint8]:
        """The scene as [render_size, render_size, 3] uint8, RGB.

        Raises:
            ValueError: the environment was made without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            raise ValueError('Kitchen: render() needs gym.make(..., render_mode="rgb_array").')
        frame: NDArray[np.uint8] = self._kitchen.render()
        return frame

    def close(self) -> None:
        """Free the rendering context."""
        self._kitchen.close()

    def _position_target(self, command: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the joint positions to steer to; both modes obey the original's limits of velocity and position."""
        last = self._observed[:N_ROBOT]
        if self._action_mode == "velocity":
            velocity = self._robot.act_mid + command.clip(-1, 1) * self._robot.act_rng
        else:
            velocity = (command - last) / self._robot.dt
        slowest, fastest = self._robot.robot_vel_bound[:N_ROBOT].T
        low, high = self._robot.robot_pos_bound[:N_ROBOT].T
        target: NDArray[np.float64] = (last + velocity.clip(slowest, fastest) * self._robot.dt).clip(low, high)
        return target

    def _observe(self) -> NDArray[np.float64]:
        noise = self.np_random.uniform(-1.0, 1.0, N_POSITIONS) * NOISE_AMPLITUDE * self._noise_ratio
        self._observed = self._robot.data.qpos + noise
        return with_goal(self._observed) if self._obs_type == "state_goal" else self._observed.copy()

    def _info(self) -> dict[str, Any]:
        n_completed = len(self._completed)
        return {
            "n_completed": n_completed,
            "completed_tasks": list(self._completed),
            "is_success": n_completed >= DEMONSTRATED,
        }

    def _simplify_rendering(self, size: int) -> None:
        # The model asks for large frames of eight samples, shadows and mirrors: a second a frame on a CPU.
        model = self._robot.model
        model.vis.global_.offwidth, model.vis.global_.offheight = size, size
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = False
        model.mat_reflectance[:] = 0.0


def checked_start(options: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """`options` as float64 arrays: qpos [30], qvel [29].

    Raises:
        ValueError: an option is unknown, missing, of another shape, or not finite.
    """
    expected = ", ".join(f"{name} [{size}]" for name, size in START_OPTIONS.items())
    if set(options) != set(START_OPTIONS):
        raise ValueError(f"Kitchen: reset options are {sorted(options)}; give all of {expected} and no other.")
    start = {}
    for name, size in START_OPTIONS.items():
        try:
            numbers = np.asarray(options[name], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Kitchen: options['{name}'] is {options[name]!r}; give {expected}.") from error
        if numbers.shape != (size,):
            raise ValueError(f"Kitchen: options['{name}'] has shape {numbers.shape}; give {expected}.")
        if not np.isfinite(numbers).all():
            raise ValueError(f"Kitchen: options['{name}'] is {numbers.tolist()}; all numbers must be finite.")
        start[name] = numbers
    return start
