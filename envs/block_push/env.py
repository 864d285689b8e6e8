"""The BlockPush environment: two blocks, two targets, and a robot arm that pushes."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.block_push.progress import Progress
from envs.block_push.starts import (
    EFFECTOR_TARGET,
    HIGH,
    LOW,
    N_NUMBERS,
    WORKSPACE,
    Numbers,
    benchmark_start,
    checked_state,
)
from envs.block_push.world import World

ACTION_MODES = ("relative", "absolute")
MAX_DISPLACEMENT = 0.1  # metres a step, in x and in y


class BlockPushEnv(gym.Env[Numbers, NDArray[np.float32]]):
    """Push two blocks into two targets, in any order; made by `gym.make("drift_policy/BlockPush-v0", ...)`.

    The task `BlockPushMultimodal` of Implicit Behavioral Cloning and Behavior Transformers in the form of Diffusion
    Policy's benchmark: its starts, observations, actions and score. The robot is pybullet's xArm 6, driven through
    inverse kinematics; its flange stays at one height and carries a stick. The blocks are cubes of 4 cm. Control runs
    at 10 Hz: each step is 24 physics steps of 1/240 s.

    Action [2] float32, in metres; float64 is used at its full precision. By `action_mode`:

    - "relative": displacement of the effector's target, clipped to -0.1..0.1.
    - "absolute": the effector's target itself.

    The target is brought into the workspace (x 0.15..0.7, y -0.5..0.5), and the effector follows it with a lag. The
    far corners, beyond 0.71 from the base, are out of its reach.

    Observation: [16] float64. Block 1 x, y, yaw; block 2 x, y, yaw; effector x, y; effector's target x, y; target 1
    x, y, yaw; target 2 x, y, yaw, in metres and radians in the frame of the robot's base. Yaws lie in 0..pi.

    A block is in a target when their centres are less than 0.05 m apart. Reward: half the number of completed phases,
    0, 0.5 or 1. The first phase is completed for good when any block has been in any target; the second when both
    blocks are in different targets at the same time. `terminated` then; `gym.make` truncates after 350 steps. The
    shares of episodes with one and with two phases are the p1 and p2 of published tables, whose rewards for the phases
    are 0.49 and 0.51.

    Info: `is_success` (bool, both phases), `n_completed` (int 0..2), `entry_steps` [2, 2] int (the step in which the
    block of the row first was in the target of the column, 0 being the start, -1 not yet), `first_block` and
    `first_target` (int 0 or 1: what entered first, -1 nothing yet).

    Start: `reset(seed=s)` is the start of Diffusion Policy's benchmark at seed s (0 to 2**32 - 1); it serves 100000 and
    up. `reset()` draws a new such seed from the environment's own generator. `reset(options={"state": [...]})` starts
    at rest in the state that is given, sixteen numbers as an observation has them. The same start and actions give the
    same observations, to the last bit, whatever was played before.

    Args:
        action_mode: "relative" or "absolute".
        render_mode: None or "rgb_array".
        render_size: side of the frames that `render` returns, in pixels.

    Raises:
        ValueError: an argument, action or reset option that does not fit; the message says what does.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, action_mode: str = "relative", render_mode: str | None = None, render_size: int = 256) -> None:
        if action_mode not in ACTION_MODES:
            raise ValueError(f"BlockPush: action_mode is {action_mode!r}; use one of {', '.join(ACTION_MODES)}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"BlockPush: render_mode is {render_mode!r}; use None or 'rgb_array'.")
        if render_size < 1:
            raise ValueError(f"BlockPush: render_size is {render_size}; use at least 1 pixel.")
        self.action_mode, self.render_mode, self.render_size = action_mode, render_mode, render_size
        self.observation_space = spaces.Box(LOW, HIGH, dtype=np.float64)
        if action_mode == "relative":
            self.action_space = spaces.Box(-MAX_DISPLACEMENT, MAX_DISPLACEMENT, (2,), np.float32)
        else:
            self.action_space = spaces.Box(*WORKSPACE.astype(np.float32), dtype=np.float32)
        self._world: World | None = World()
        self._observation = np.zeros(N_NUMBERS)
        self._progress: Progress | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Numbers, dict[str, Any]]:
        """Start an episode; the class docstring says where.

        Args:
            seed: picks the start, and seeds the generator from which later resets without a seed draw.
            options: {"state": sixteen numbers} fixes the start, whatever the seed.

        Raises:
            ValueError: a seed or state that cannot be used, or an unknown option.
        """
        unknown = set(options or {}) - {"state"}
        if unknown:
            raise ValueError(f"BlockPush: unknown reset options {sorted(unknown)}; the only one is 'state'.")
        super().reset(seed=seed)
        if options:
            start = checked_state(options["state"])
        else:
            start = benchmark_start(int(self.np_random.integers(2**32)) if seed is None else seed)
        world = self._open_world()
        world.build(start)
        self._observation = world.observe()
        self._progress = Progress(self._observation)
        return self._observation.copy(), self._progress.info()

    def step(self, action: ArrayLike) -> tuple[Numbers, float, bool, bool, dict[str, Any]]:
        """Move the effector's target by or to `action` [2] and let the robot follow for 0.1 s.

        Returns:
            observation, reward, terminated, truncated (always False; `gym.make` adds the time limit) and info.

        Raises:
            ValueError: an action that is not two finite numbers, or no `reset` before.
        """
        world = self._open_world()
        if self._progress is None:
            raise ValueError("BlockPush: call reset() before step().")
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,):
            raise ValueError(f"BlockPush: the action has shape {target.shape}; give x, y in metres, shape (2,).")
        if not np.isfinite(target).all():
            raise ValueError(f"BlockPush: the action is {target.tolist()}; both numbers must be finite.")
        if self.action_mode == "relative":
            target = self._observation[EFFECTOR_TARGET] + target.clip(-MAX_DISPLACEMENT, MAX_DISPLACEMENT)
        world.move(target)
        self._observation = world.observe()
        self._progress.update(self._observation)
        terminated = self._progress.n_completed == 2
        return self._observation.copy(), self._progress.n_completed / 2, terminated, False, self._progress.info()

    def render(self) -> NDArray[np.uint8]:
        """The scene from the front as [render_size, render_size, 3] uint8, RGB.

        Block 1 red, block 2 blue, target 1 green, target 2 yellow. A target's square is 10 cm wide: a block's centre
        counts within its inner circle.

        Raises:
            ValueError: the environment was made without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            raise ValueError('BlockPush: render() needs gym.make(..., render_mode="rgb_array").')
        return self._open_world().render(self.render_size)

    def close(self) -> None:
        """End the physics server; a second call does nothing."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def _open_world(self) -> World:
        if self._world is None:
            raise ValueError("BlockPush: the environment is closed; make a new one.")
        return self._world
