"""The human demonstrations of the Adroit door, with the start that is stored for each and what they record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.readers.npz import read_arrays, read_npz
from drift_policy.errors import DataError
from envs.adroit.env import N_ACTIONS, N_JOINTS, AdroitDoorEnv

Numbers = NDArray[np.float64]
BLOCKS = {
    "arm and hand": slice(0, 27),
    "latch": slice(27, 28),
    "door": slice(28, 29),
    "palm": slice(29, 32),
    "handle": slice(32, 35),
    "palm - handle": slice(35, 38),
    "door open": slice(38, 39),
}  # what the 39 numbers of an observation are
DOOR = 28  # column of the door's angle
OPEN_ANGLE = 1.35  # radians from which gymnasium-robotics reports success
# Door frame positions that gymnasium-robotics draws from: x, y, z.
RESET_LOW, RESET_HIGH = np.array([-0.3, 0.25, 0.252]), np.array([-0.2, 0.35, 0.35])


@dataclass(frozen=True)
class Start:
    """A state that an episode can start from."""

    qpos: Numbers  # [30] slide and rotations of the arm, wrist and fingers, door hinge, latch
    qvel: Numbers  # [30]
    door_body_pos: Numbers  # [3] of the door frame


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode of L steps; action and reward of a step belong to the observation before the action."""

    observations: Numbers  # [L, 39]
    actions: Numbers  # [L, 28]
    rewards: Numbers  # [L]
    stored_start: Start

    @property
    def largest_angle(self) -> float:
        """How far the door was open at most in what was observed, in radians."""
        return float(self.observations[:, DOOR].max())


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Read all episodes and their starts.

    Raises:
        DataError: the archive is damaged or does not hold Adroit door demonstrations.
    """
    buffer = read_npz(path, ["observation", "action", "reward"])
    starts = read_arrays(path, ["init_qpos", "init_qvel", "init_door_body_pos"])
    shapes = {name: array.shape for name, array in {**buffer.data, **starts}.items()}
    expected = {
        "observation": (buffer.n_steps, 39),
        "action": (buffer.n_steps, N_ACTIONS),
        "reward": (buffer.n_steps,),
        "init_qpos": (buffer.n_episodes, N_JOINTS),
        "init_qvel": (buffer.n_episodes, N_JOINTS),
        "init_door_body_pos": (buffer.n_episodes, 3),
    }
    if shapes != expected:
        raise DataError(f"{path} does not hold Adroit door demonstrations: shapes {shapes} instead of {expected}.")
    demonstrations = []
    for index in range(buffer.n_episodes):
        columns = {name: column.astype(np.float64) for name, column in buffer.episode(index).items()}
        start = [starts[name][index].astype(np.float64) for name in ("init_qpos", "init_qvel", "init_door_body_pos")]
        demonstrations.append(
            Demonstration(columns["observation"], columns["action"], columns["reward"], Start(*start))
        )
    return demonstrations


def observed_start(env: AdroitDoorEnv, demonstration: Demonstration, with_velocity: bool = False) -> Start:
    """Return the state in which the first observation was made.

    An observation shows all joints but the arm's slide, which the position of the palm gives. It shows no velocity: the
    start is taken to be at rest, or the difference of the first two observations is used.
    """
    first, _ = observed_joints(env, demonstration, 0)
    qvel = np.zeros(N_JOINTS)
    if with_velocity:
        qvel = (observed_joints(env, demonstration, 1)[0] - first) / env.dt
    return Start(first, qvel, demonstration.stored_start.door_body_pos)


def observed_joints(env: AdroitDoorEnv, demonstration: Demonstration, step: int) -> tuple[Numbers, float]:
    """Return the joint angles [30] that an observation shows, and the misfit of the palm's position in metres."""
    observation = demonstration.observations[step]
    qpos = np.zeros(N_JOINTS)
    qpos[1:28], qpos[28], qpos[29] = observation[:27], observation[DOOR], observation[27]

    def palm(slide: float) -> Numbers:
        qpos[0] = slide
        env.model.body_pos[env.door_body_id] = demonstration.stored_start.door_body_pos
        env.set_state(qpos, np.zeros(N_JOINTS))
        return np.array(env.data.site_xpos[env.grasp_site_id])

    origin = palm(0.0)
    axis = palm(1.0) - origin
    offset = observation[BLOCKS["palm"]] - origin
    qpos[0] = axis @ offset / (axis @ axis)
    return qpos, float(np.abs(offset - qpos[0] * axis).max())


def recording_facts(demonstrations: list[Demonstration]) -> dict[str, Any]:
    """Return what the recordings say by themselves, without any simulation."""
    angles = [demonstration.largest_angle for demonstration in demonstrations]
    observations = np.concatenate([demonstration.observations for demonstration in demonstrations])
    actions = np.concatenate([demonstration.actions for demonstration in demonstrations])
    first = np.stack([demonstration.observations[0] for demonstration in demonstrations])
    stored = np.stack([demonstration.stored_start.qpos for demonstration in demonstrations])
    doors = np.stack([demonstration.stored_start.door_body_pos for demonstration in demonstrations])
    relative = observations[:, BLOCKS["palm"]] - observations[:, BLOCKS["handle"]]
    is_open = observations[:, DOOR] > 1.0
    return {
        "demonstrations": len(demonstrations),
        "steps": len(observations),
        "opened": sum(angle >= OPEN_ANGLE for angle in angles),
        "opened_by_1_radian": sum(angle > 1.0 for angle in angles),
        "opened_by_1_radian_within_200_steps": sum(
            bool((demonstration.observations[:200, DOOR] > 1.0).any()) for demonstration in demonstrations
        ),
        "largest_angles": angles,
        "largest_stored_joint_angle": float(np.abs(stored).max()),
        "largest_first_observed_joint_angle": float(np.abs(first[:, :27]).max()),
        "joints_at_zero_in_every_first_observation": int((np.abs(first[:, :27]) == 0).all(axis=0).sum()),
        "largest_error_of_palm_minus_handle": float(np.abs(relative - observations[:, 35:38]).max()),
        "steps_with_another_door_open_flag": int((is_open != (observations[:, 38] > 0)).sum()),
        "share_of_action_numbers_outside_1": float((np.abs(actions) > 1).mean()),
        "door_places_in_the_range_of_resets": int(((doors >= RESET_LOW) & (doors <= RESET_HIGH)).all(axis=1).sum()),
        "door_places": {"lowest": doors.min(axis=0).tolist(), "highest": doors.max(axis=0).tolist()},
        "reward_minus_that_of_the_observation_before_the_action": _reward_differences(demonstrations, 0),
        "reward_minus_that_of_the_observation_after_the_action": _reward_differences(demonstrations, 1),
    }


def squared_speeds(demonstrations: list[Demonstration]) -> Numbers:
    """Return the squared joint speed after the first action of each demonstration, which its reward reveals: [E]."""
    return np.array([-1e5 * _reward_difference(d, 1)[0] for d in demonstrations])


def _reward_differences(demonstrations: list[Demonstration], shift: int) -> dict[str, float]:
    differences = np.concatenate([_reward_difference(demonstration, shift) for demonstration in demonstrations])
    return {"lowest": float(differences.min()), "highest": float(differences.max())}


def _reward_difference(demonstration: Demonstration, shift: int) -> Numbers:
    """Return recorded rewards minus DAPG's reward, without its cost of speed, of the observations `shift` steps later.

    What remains at the right shift is the cost of speed alone: -1e-5 times the squared joint speed.
    """
    steps = len(demonstration.rewards) - 1
    observed = demonstration.observations[shift : shift + steps]
    angle = observed[:, DOOR]
    reward = -0.1 * np.linalg.norm(observed[:, BLOCKS["palm - handle"]], axis=1) - 0.1 * (angle - 1.57) ** 2
    reward += 2.0 * (angle > 0.2) + 8.0 * (angle > 1.0) + 10.0 * (angle > OPEN_ANGLE)
    difference: Numbers = demonstration.rewards[:steps] - reward
    return difference
