"""The Adroit door environment: gymnasium-robotics' AdroitHandDoor, scored by success."""

from typing import Any

import numpy as np
from farama_notifications import notifications
from numpy.typing import ArrayLike, NDArray

from envs.rendering import choose_backend

# gymnasium-robotics prints a notice about a change of its rewards, which are not used here, in every worker process.
notifications.pop("gymnasium_robotics", None)

from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv  # noqa: E402

N_JOINTS = 30  # 28 of arm and hand, door hinge, latch
N_ACTIONS = 28
OPEN_FLAG_ANGLE = 1.0  # radians, beyond which the observation says that the door is open
START_OPTIONS = {"qpos": N_JOINTS, "qvel": N_JOINTS, "door_body_pos": 3}


class AdroitDoorEnv(AdroitHandDoorEnv):  # type: ignore[misc]
    """Turn a latch and pull a door open with a hand; made by `gym.make("drift_policy/AdroitDoor-v0", ...)`.

    Physics, observation and success are those of gymnasium-robotics. Control runs at 100 Hz: each step is five physics
    steps of 0.002 s.

    Action: `Box(-1, 1, (28,), float32)`, target positions of arm (4), wrist (2) and fingers (22), each scaled from its
    joint's control range to -1..1. What lies outside is clipped; demonstrated actions do.

    Observation: [39] float64, as the demonstrations have it: joint angles of arm without its slide, wrist and fingers
    (27), latch, door hinge (radians), palm position (3), handle position (3), palm minus handle (3), and 1 if the door
    is open by more than 1 radian, else -1. Positions lag behind the angles by one physics step, also in the
    demonstrations.

    Reward: 1.0 in a step in which gymnasium-robotics reports success (the door is open by at least 1.35 radians), else
    0.0. The highest reward of an episode, which evaluation takes as its score, is therefore 1 for success and 0
    otherwise. An episode never terminates; `gym.make` truncates it after 300 steps.

    Info: `is_success` (bool, gymnasium-robotics' own), `door_angle` (float, radians), `n_completed` (int: 1 when the
    door is open by more than 1 radian, as in all demonstrations, 2 by 1.35 radians, which 7 of the 25 reach).

    Start: arm, hand and door at rest with all joints at zero, the door frame at a place that `reset(seed=s)` draws from
    gymnasium-robotics' range. `reset(options={"qpos": [30], "qvel": [30], "door_body_pos": [3]})` starts in the state
    that is given, for example where a demonstration did.

    Args:
        render_mode: None or "rgb_array".
        render_size: side of the frames that `render` returns, in pixels.

    Raises:
        ValueError: an argument, action or reset option that does not fit; the message says what does.
        ConfigurationError: `render_mode` is given, but MuJoCo cannot render on this machine.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}

    def __init__(self, render_mode: str | None = None, render_size: int = 256) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"Adroit door: render_mode is {render_mode!r}; use None or 'rgb_array'.")
        if render_size < 1:
            raise ValueError(f"Adroit door: render_size is {render_size}; use at least 1 pixel.")
        if render_mode is not None:
            choose_backend()
        super().__init__(reward_type="sparse", render_mode=render_mode, width=render_size, height=render_size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; the class docstring says where.

        Args:
            seed: picks the place of the door, and seeds the generator from which later resets without a seed draw.
            options: {"qpos": [30], "qvel": [30], "door_body_pos": [3]} fixes the start, whatever the seed.

        Raises:
            ValueError: an unknown or missing option, or one of another shape or not finite.
        """
        start = checked_start(options) if options else None
        observation, _ = super().reset(seed=seed)
        if start is not None:
            self.set_env_state(start)
            observation = self._get_obs()
        return observation, self._door_info(is_success=False)

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Move towards the joint targets `action` [28] for 0.01 s.

        Returns:
            observation, reward, terminated and truncated (always False; `gym.make` adds the time limit) and info.

        Raises:
            ValueError: an action that is not 28 finite numbers.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (N_ACTIONS,):
            raise ValueError(f"Adroit door: the action has shape {target.shape}; give {N_ACTIONS} joint targets.")
        if not np.isfinite(target).all():
            raise ValueError(f"Adroit door: the action is {target.tolist()}; all numbers must be finite.")
        observation, _, _, _, info = super().step(target)
        success = bool(info["success"])
        return observation, float(success), False, False, self._door_info(success)

    def render(self) -> NDArray[np.uint8]:
        """The scene as [render_size, render_size, 3] uint8, RGB.

        Raises:
            ValueError: the environment was made without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            raise ValueError('Adroit door: render() needs gym.make(..., render_mode="rgb_array").')
        frame: NDArray[np.uint8] = super().render()
        return frame

    def _door_info(self, is_success: bool) -> dict[str, Any]:
        angle = float(self.data.qpos[self.door_hinge_addrs])
        n_completed = int(angle > OPEN_FLAG_ANGLE) + int(is_success)
        return {"is_success": is_success, "door_angle": angle, "n_completed": n_completed}

    def _initialize_simulation(self) -> tuple[Any, Any]:
        model, data = super()._initialize_simulation()
        # The model asks for 3024 x 1680 pixels with eight samples each and shadows: slow on a CPU, no gain for a film.
        model.vis.global_.offwidth, model.vis.global_.offheight = self.width, self.height
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = False
        return model, data


def checked_start(options: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """`options` as float64 arrays: qpos [30], qvel [30], door_body_pos [3].

    Raises:
        ValueError: an option is unknown, missing, of another shape, or not finite.
    """
    expected = ", ".join(f"{name} [{size}]" for name, size in START_OPTIONS.items())
    if set(options) != set(START_OPTIONS):
        raise ValueError(f"Adroit door: reset options are {sorted(options)}; give all of {expected} and no other.")
    start = {}
    for name, size in START_OPTIONS.items():
        try:
            numbers = np.asarray(options[name], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Adroit door: options['{name}'] is {options[name]!r}; give {expected}.") from error
        if numbers.shape != (size,):
            raise ValueError(f"Adroit door: options['{name}'] has shape {numbers.shape}; give {expected}.")
        if not np.isfinite(numbers).all():
            raise ValueError(f"Adroit door: options['{name}'] is {numbers.tolist()}; all numbers must be finite.")
        start[name] = numbers
    return start
