"""The tasks of robomimic as a Gymnasium environment on robosuite."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from drift_policy.data.readers.robomimic_actions import EXECUTED_PER_ARM, LEARNED_PER_ARM, unconvert_actions
from envs.rendering import choose_backend
from envs.robomimic.cameras import Cameras
from envs.robomimic.env_args import ActionMode, check_env_args, default_environment
from envs.robomimic.simulation import (
    import_robosuite,
    is_success,
    load_own_model,
    make_robosuite,
    observe,
    reset_robosuite,
    restore_state,
)
from envs.robomimic.start_states import StartStates, check_model
from envs.robomimic.tasks import TASKS

import_robosuite()  # this import fails, before anything is trained, where robosuite is missing

OBS_TYPES = ("low_dim", "image")
ACTION_MODES = ("delta", "absolute")
ROBOT_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")  # position in metres, quaternion x, y, z, w, fingers in metres
OBJECT_KEY = "object"
FILM_CAMERA = "agentview"
RESET_OPTIONS = {"state", "model"}

Observation = NDArray[np.float64] | dict[str, NDArray[Any]]


class RobomimicEnv(gym.Env[Observation, NDArray[Any]]):
    """Lift, Can, Square, Transport or ToolHang; made by `gym.make("drift_policy/Robomimic-v0", task="lift", ...)`.

    The simulator is made from robomimic's `env_args`, as the demonstrations state them. Control runs at 20 Hz unless
    they say otherwise.

    Action, for each of A arms: with `action_mode="delta"` `Box(-1, 1, (7 A,), float32)`, translation and rotation
    vector relative to the present pose, scaled by the controller, and the gripper (positive closes); what lies outside
    is clipped. With "absolute" `Box(-inf, inf, (10 A,), float32)`, position of the hand in metres, rotation as six
    numbers (see drift_policy.data.rotations), both in the world's frame, and the gripper.

    Observation, float64 but for images, what robomimic's files hold for the same state:

    - "low_dim" [D]: `object`, then for each arm end effector position, quaternion and gripper, as Diffusion Policy
      concatenates them. D is 19 for lift, 23 for can and square, 59 for transport, 53 for tool_hang.
    - "image": {"<camera>_image": [3, H, W] uint8, RGB, upright; "robot<i>_eef_pos" [3], "robot<i>_eef_quat" [4],
      "robot<i>_gripper_qpos" [2]}, without the state of the objects.

    robomimic's own environment returns most numbers one physics step (2 ms) older than its files have them; here they
    are those of the files.

    Reward: 1.0 in a step after which the task is solved, else 0.0. The episode terminates then. Diffusion Policy goes
    on to the step limit and takes the highest reward, which is the same score.

    Info: `is_success` (bool).

    Start: `reset(seed=s)`, s from 0 to 2**32 - 1, draws joint angles and places of objects as robosuite does, the same
    ones for the same seed. With `start_states` a seed below the number of its demonstrations starts where that
    demonstration did, in its model. `reset(options={"state": [...], "model": xml})` starts in a flattened MuJoCo state;
    the model may be left out, and is then the own one.

    Args:
        task: "lift", "can", "square", "transport" or "tool_hang".
        env_args: name, kwargs, version and type of a file's `env_args`; None is those of robomimic's v1.4.1 files.
        obs_type: "low_dim" or "image".
        action_mode: "delta" or "absolute".
        start_states: a robomimic file of the task.
        render_mode: None or "rgb_array".
        render_size: side of the frames that `render` returns, in pixels.

    Raises:
        ValueError: an argument, action or reset option that does not fit; the message says what does.
        ConfigurationError: `env_args` that cannot be used, or MuJoCo cannot render on this machine.
        DataError: `start_states` is missing, damaged or of another task.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task: str = "lift",
        env_args: Mapping[str, Any] | None = None,
        obs_type: str = "low_dim",
        action_mode: ActionMode = "delta",
        start_states: str | Path | None = None,
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        _require_choice("task", task, tuple(TASKS))
        _require_choice("obs_type", obs_type, OBS_TYPES)
        _require_choice("action_mode", action_mode, ACTION_MODES)
        _require_choice("render_mode", render_mode, (None, "rgb_array"))
        if not 1 <= render_size <= 4096:
            raise ValueError(f"robomimic: render_size is {render_size}; use 1 to 4096 pixels.")
        arguments = check_env_args(
            asdict(default_environment(task)) if env_args is None else env_args, task, action_mode
        )
        self.render_mode = render_mode
        self._action_mode = action_mode
        self._arms = len(TASKS[task].robots)
        self._starts = None if start_states is None else StartStates(start_states, arguments.env_name)
        robots = [f"robot{arm}_{key}" for arm in range(self._arms) for key in ROBOT_KEYS]
        self._keys = robots if obs_type == "image" else [OBJECT_KEY, *robots]
        self._views = TASKS[task].cameras if obs_type == "image" else ()
        backend = choose_backend() if self._views or render_mode else ""
        self._cameras = Cameras(backend, arguments.image_size)
        self._film = Cameras(backend, render_size)
        self._robosuite = make_robosuite(arguments.env_name, arguments.env_kwargs)
        self._model: str | None = None  # the one that is loaded in place of the own
        self.observation_space = self._space(arguments.image_size)
        self.action_space = spaces.Box(-1, 1, (EXECUTED_PER_ARM * self._arms,), np.float32)
        if action_mode == "absolute":
            self.action_space = spaces.Box(-np.inf, np.inf, (LEARNED_PER_ARM * self._arms,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the class docstring says where.

        Args:
            seed: picks the start, and seeds the generator from which later resets without a seed draw.
            options: {"state": [D]} or {"state": [D], "model": xml} fixes the start, whatever the seed.

        Raises:
            ValueError: a seed or state that cannot be used, or an unknown option.
            DataError: the start of a demonstration is damaged, or its model is not one of robosuite.
        """
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**32)) if seed is None else seed
        if options:
            self._start_in(options)
        elif self._starts is not None and number < len(self._starts):
            start = self._starts.read(number)
            self._restore(start.state, start.model)
        else:
            self._load_own_model()
            reset_robosuite(self._robosuite, number)
        return self._observation(), {"is_success": False}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a control step.

        Returns:
            observation, reward, terminated, truncated (always False; `gym.make` adds the time limit) and info.

        Raises:
            ValueError: an action of another shape, or that is not finite or names no rotation.
        """
        given = np.asarray(action, dtype=np.float64)
        if given.shape != self.action_space.shape:
            raise ValueError(
                f"robomimic: the action has shape {given.shape}; {self._action_mode} actions have shape "
                f"{self.action_space.shape}."
            )
        if not np.isfinite(given).all():
            raise ValueError(f"robomimic: the action is {given.tolist()}; all numbers must be finite.")
        self._robosuite.step(given.clip(-1, 1) if self._action_mode == "delta" else unconvert_actions(given))
        success = is_success(self._robosuite)
        return self._observation(), float(success), success, False, {"is_success": success}

    def render(self) -> NDArray[np.uint8]:
        """The scene as [render_size, render_size, 3] uint8, RGB.

        Raises:
            ValueError: the environment was made without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            raise ValueError('robomimic: render() needs gym.make(..., render_mode="rgb_array").')
        return self._film.frame(self._robosuite.sim, FILM_CAMERA)

    def close(self) -> None:
        """Free the simulator and what it rendered with."""
        self._cameras.close()
        self._film.close()
        self._robosuite.close()

    def _start_in(self, options: dict[str, Any]) -> None:
        if "state" not in options or not set(options) <= RESET_OPTIONS:
            raise ValueError(f"robomimic: reset options are {sorted(options)}; give 'state', and if at all 'model'.")
        state, model = np.asarray(options["state"], dtype=np.float64), options.get("model")
        if not np.isfinite(state).all():
            raise ValueError("robomimic: options['state'] holds NaN or infinity.")
        if model is not None:
            check_model(model, "options['model']")
        self._restore(state, model)

    def _restore(self, state: NDArray[np.float64], model: str | None) -> None:
        """Start in a state, in a given model or the own one; loading one takes about a second."""
        if model is None:
            self._load_own_model()
        reset_robosuite(self._robosuite, 0)  # what is no part of a state, such as markers that robosuite hides
        restore_state(self._robosuite, state, model if model != self._model else None)
        self._model = model

    def _load_own_model(self) -> None:
        if self._model is not None:
            load_own_model(self._robosuite)
            self._model = None

    def _observation(self) -> Observation:
        seen = observe(self._robosuite)
        if not self._views:
            return np.concatenate([seen[key] for key in self._keys])
        frames = {f"{view}_image": self._cameras.frame(self._robosuite.sim, view) for view in self._views}
        images = {key: np.ascontiguousarray(frame.transpose(2, 0, 1)) for key, frame in frames.items()}
        return images | {key: seen[key] for key in self._keys}

    def _space(self, image_size: int) -> spaces.Space[Any]:
        seen = observe(self._robosuite)
        if not self._views:
            size = sum(len(seen[key]) for key in self._keys)
            return spaces.Box(-np.inf, np.inf, (size,), np.float64)
        boxes: dict[str, spaces.Space[Any]] = {
            f"{view}_image": spaces.Box(0, 255, (3, image_size, image_size), np.uint8) for view in self._views
        }
        for key in self._keys:
            boxes[key] = spaces.Box(-np.inf, np.inf, seen[key].shape, np.float64)
        return spaces.Dict(boxes)


def _require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"robomimic: {name} is {value!r}; use one of {', '.join(map(repr, choices))}.")
