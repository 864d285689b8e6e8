"""Playing one episode and keeping what robomimic's files hold of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.robomimic.simulation import is_success, observe

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """T steps: what was before each action, the action, and what came of it."""

    actions: Numbers  # [T, 7] of each robot: translation, rotation vector, gripper, in [-1, 1]
    actions_abs: Numbers  # [T, 7] of each robot: position (m) and rotation vector (rad) of the goal, gripper
    states: Numbers  # [T, D] flattened MuJoCo states
    rewards: Numbers  # [T], 1 where the task is solved after the action
    dones: NDArray[np.int64]  # [T], 1 where the task is solved after the action, and in the last step
    observations: dict[str, NDArray[Any]]  # key -> [T, ...]
    model: str  # MuJoCo's XML of the scene
    success: bool  # whether the task was solved at any step


def play(
    env: Any,
    act: Callable[[], Numbers],
    max_steps: int,
    steps_after_success: int | None,
    cameras: Sequence[str] = (),
    camera_size: int = 84,
) -> Episode:
    """Play an episode from the present state.

    Args:
        env: an environment of robosuite, just reset.
        act: gives the action for the present state.
        max_steps: where the episode ends at the latest.
        steps_after_success: how many steps after the first success it ends; None is only at `max_steps`.
        cameras: cameras whose images are kept.
        camera_size: height and width of these images in pixels.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("actions", "actions_abs", "states", "rewards", "solved")}
    observations: list[dict[str, NDArray[Any]]] = []
    model = env.sim.model.get_xml()
    last = max_steps
    while len(observations) < last:
        observations.append(observe(env, cameras, (camera_size, camera_size)))
        columns["states"].append(env.sim.get_state().flatten())
        action = act()
        _, reward, _, _ = env.step(action)
        columns["actions"].append(action)
        columns["actions_abs"].append(_goals(env, action))
        columns["rewards"].append(reward)
        columns["solved"].append(is_success(env))
        if steps_after_success is not None and columns["solved"][-1]:
            last = min(last, columns["solved"].index(True) + 1 + steps_after_success)
    dones = np.array(columns["solved"], dtype=np.int64)
    dones[-1] = 1
    return Episode(
        actions=np.array(columns["actions"], dtype=np.float64),
        actions_abs=np.array(columns["actions_abs"], dtype=np.float64),
        states=np.array(columns["states"], dtype=np.float64),
        rewards=np.array(columns["rewards"], dtype=np.float64),
        dones=dones,
        observations={key: np.stack([observation[key] for observation in observations]) for key in observations[0]},
        model=model,
        success=any(columns["solved"]),
    )


def _goals(env: Any, action: Numbers) -> Numbers:
    """Return the action [7] of each robot as a pose: the goals that the controllers hold since they took the action."""
    goals = []
    for robot, own in zip(env.robots, np.split(action, len(env.robots)), strict=True):
        rotation = Rotation.from_matrix(robot.controller.goal_ori).as_rotvec()
        goals.append(np.concatenate([robot.controller.goal_pos, rotation, own[6:]]))
    return np.concatenate(goals)
