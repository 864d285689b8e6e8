"""The Push-T environment: gym-pusht's physics with the starts and observations of Diffusion Policy's benchmark."""

import math
import os
import sys
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.pusht.geometry import benchmark_start, block_keypoints, legacy_start

# pygame chooses its video driver when it is loaded, and without a screen only this one works.
if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
# Without this pygame prints a greeting in every worker process.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from gym_pusht.envs.pusht import PushTEnv as GymPushT  # noqa: E402
from gym_pusht.envs.pusht import pymunk_to_shapely  # noqa: E402
from pygame.image import tobytes  # noqa: E402
from pymunk import Vec2d  # noqa: E402

OBS_TYPES = ("keypoints", "state", "image")
BOARD_SIZE = 512
IMAGE_SIZE = 96
PHYSICS_STEPS = 10  # of 0.01 s, in each step of the environment

# The agent stays on the board (0..512) while its targets do, but it can push the block over the edge: by the block's
# own length (142 px), the agent's radius (15 px) and one physics step at the agent's top speed (about 50 px).
POSITION_LOW, POSITION_HIGH = -256.0, 768.0
STATE_HELP = "five numbers: agent x, agent y, block x, block y (pixels), block angle (radians)"

Observation = NDArray[np.float64] | dict[str, NDArray[Any]]


class PushTEnv(GymPushT):  # type: ignore[misc]
    """Push a T-shaped block onto its goal pose; made by `gym.make("drift_policy/PushT-v0", ...)`.

    The board is 512 x 512 pixels with y pointing down. Control runs at 10 Hz: each step is ten physics steps of 0.01 s,
    in which a PD controller pulls the agent to the target that the action names.

    Action: `Box(0, 512, (2,), float32)`, target x, y of the agent in pixels; float64 is used at its full precision. A
    finite target outside the box is passed on unclipped, as in the original: the agent leaves the board, and
    observations may leave their space.

    Observation, by `obs_type` (all in pixels and radians, float64 except the image):

    - "keypoints" [20]: x, y of the nine block keypoints (`BLOCK_KEYPOINTS_LOCAL`), then agent x, y.
    - "state" [5]: agent x, agent y, block x, block y, block angle in 0..2 pi.
    - "image": {"image": [3, 96, 96] float32 in 0..1, RGB; "agent_pos": [2]}. As in Diffusion Policy's image environment
      the action marker is not in the observation, only in what `render` returns.

    Reward: share of the goal area that the block covers, divided by 0.95, clipped to 0..1. `terminated` when more than
    0.95 is covered. `gym.make` truncates after 300 steps.

    Info: `coverage` (float, 0..1), `is_success` (bool), `n_contacts` (int: contact points per physics step, rounded up,
    of all bodies), `pos_agent` [2], `vel_agent` [2], `block_pose` [3] (x, y, angle not wrapped), `goal_pose` [3].

    Start: `reset(seed=s)` is the start of Diffusion Policy's benchmark at seed s (0 to 2**32 - 1). `reset()` draws a
    new such seed from the environment's own generator. `reset(options={"state": [...]})` starts in the state that is
    given, as obs_type "state" shows it: the legacy order of gym-pusht's `reset_to_state`, which shifts the block, is
    undone. One physics step is taken at rest, as in the original, and moves only bodies that overlap.

    Args:
        obs_type: "keypoints", "state" or "image".
        render_mode: None or "rgb_array".
        render_size: side of the frames that `render` returns, in pixels, at least 96.

    Raises:
        ValueError: an argument, action or reset option that does not fit; the message says what does.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, obs_type: str = "keypoints", render_mode: str | None = None, render_size: int = 256) -> None:
        if obs_type not in OBS_TYPES:
            raise ValueError(f"Push-T: obs_type is {obs_type!r}; use one of {', '.join(OBS_TYPES)}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"Push-T: render_mode is {render_mode!r}; use None or 'rgb_array'.")
        if render_size < IMAGE_SIZE:
            raise ValueError(f"Push-T: render_size is {render_size}; use at least {IMAGE_SIZE} pixels.")
        super().__init__(
            obs_type=obs_type,
            render_mode=render_mode,
            observation_width=IMAGE_SIZE,
            observation_height=IMAGE_SIZE,
            visualization_width=render_size,
            visualization_height=render_size,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the class docstring says where.

        Args:
            seed: picks the start, and seeds the generator from which later resets without a seed draw.
            options: {"state": five numbers} fixes the start, whatever the seed.

        Raises:
            ValueError: a seed or state that cannot be used, or an unknown option.
        """
        unknown = set(options or {}) - {"state"}
        if unknown:
            raise ValueError(f"Push-T: unknown reset options {sorted(unknown)}; the only one is 'state'.")
        if options:
            start = legacy_start(checked_state(options["state"]))
        else:
            start = benchmark_start(int(self.np_random.integers(2**32)) if seed is None else seed)
        self._last_action = None
        observation, info = super().reset(seed=seed, options={"reset_to_state": start})
        info["coverage"] = self._get_coverage()
        info["is_success"] = info["coverage"] > self.success_threshold
        return observation, info

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move towards the target `action` [2] for 0.1 s.

        Returns:
            observation, reward, terminated, truncated (always False; `gym.make` adds the time limit) and info.

        Raises:
            ValueError: an action that is not two finite numbers.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,):
            raise ValueError(f"Push-T: the action has shape {target.shape}; give the target x, y, shape (2,).")
        x, y = target.tolist()
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"Push-T: the action is [{x}, {y}]; both numbers must be finite.")
        # A Vec2d does the same arithmetic as an array in gym-pusht's control loop, in a fraction of the time.
        observation, reward, terminated, truncated, info = super().step(Vec2d(x, y))
        return observation, float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """The board as [render_size, render_size, 3] uint8, RGB.

        Goal green, block grey, agent blue, the last target a red cross.

        Raises:
            ValueError: the environment was made without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            raise ValueError('Push-T: render() needs gym.make(..., render_mode="rgb_array").')
        frame: NDArray[np.uint8] = super().render()
        return frame

    def get_obs(self) -> Observation:
        """The current observation, as the class docstring describes it for `obs_type`."""
        if self.obs_type == "state":
            state: NDArray[np.float64] = super().get_obs()
            return state
        agent_pos = np.array(self.agent.position)
        if self.obs_type == "keypoints":
            return np.concatenate([block_keypoints(self.block.position, self.block.angle).ravel(), agent_pos])
        # gym-pusht copies the screen through a strided view, which takes longer than drawing it. Same bytes here.
        screen = np.frombuffer(tobytes(self._draw(), "RGB"), np.uint8).reshape(BOARD_SIZE, BOARD_SIZE, 3)
        pixels = cv2.resize(screen, (IMAGE_SIZE, IMAGE_SIZE))
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
        return {"image": image, "agent_pos": agent_pos}

    def _initialize_observation_space(self) -> None:
        def positions(size: int) -> spaces.Box:
            return spaces.Box(POSITION_LOW, POSITION_HIGH, (size,), np.float64)

        self.observation_space: gym.Space[Any]
        if self.obs_type == "keypoints":
            self.observation_space = positions(20)
        elif self.obs_type == "state":
            low, high = np.full(5, POSITION_LOW), np.full(5, POSITION_HIGH)
            low[4], high[4] = 0.0, 2 * np.pi
            self.observation_space = spaces.Box(low, high, dtype=np.float64)
        else:
            image = spaces.Box(0.0, 1.0, (3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
            self.observation_space = spaces.Dict({"image": image, "agent_pos": positions(2)})

    def _setup(self) -> None:
        super()._setup()
        # The goal never moves; gym-pusht would build it again at each step.
        self._goal = pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), self.block.shapes)

    def _get_coverage(self) -> float:
        block = pymunk_to_shapely(self.block, self.block.shapes)
        return float(self._goal.intersection(block).area / self._goal.area)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        # gym-pusht divides by 1000 here.
        info["n_contacts"] = math.ceil(self.n_contact_points / PHYSICS_STEPS)
        return info


def checked_state(state: ArrayLike) -> NDArray[np.float64]:
    """`state` as five float64 numbers [5]: agent x, y and block x, y in -256..768, block angle in radians.

    Raises:
        ValueError: another shape, a number that is not finite, or a position far off the board.
    """
    try:
        numbers = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Push-T: options['state'] is {state!r}; give {STATE_HELP}.") from error
    if numbers.shape != (5,):
        raise ValueError(f"Push-T: options['state'] has shape {numbers.shape}; give {STATE_HELP}.")
    if not np.isfinite(numbers).all():
        raise ValueError(f"Push-T: options['state'] is {numbers.tolist()}; all five numbers must be finite.")
    if (numbers[:4] < POSITION_LOW).any() or (numbers[:4] > POSITION_HIGH).any():
        raise ValueError(
            f"Push-T: options['state'] is {numbers.tolist()}; the positions must lie in "
            f"{POSITION_LOW:g}..{POSITION_HIGH:g} pixels (the board is 0..512)."
        )
    return numbers
