"""What Franka Kitchen's observations hold, and the mapping between their two published forms.

    numbers             Diffusion Policy, D4RL     gymnasium-robotics, Minari
    robot positions 9   0:9                        0:9
    robot velocities 9  -                          9:18
    object positions 21 9:30                       18:39
    object velocities 20 -                         39:59
    goal 30             30:60, zero                - (under the key desired_goal)

Robot: seven joints (radians) and two fingers (metres). Objects: four pairs of an oven knob and its burner, light switch
and light, slide cabinet, left and right hinge cabinet, microwave door, and the kettle's pose (x, y, z, quaternion),
whose velocity has six numbers. The goal is that of relay policy learning; Diffusion Policy and D4RL mask it with zeros.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

N_ROBOT, N_OBJECT, N_OBJECT_VELOCITY = 9, 21, 20
N_POSITIONS = N_ROBOT + N_OBJECT  # 30, also the numbers of a goal
N_VELOCITIES = N_ROBOT + N_OBJECT_VELOCITY
N_DIFFUSION_POLICY = 2 * N_POSITIONS
N_GYMNASIUM_ROBOTICS = N_POSITIONS + N_VELOCITIES


def with_goal(positions: ArrayLike) -> NDArray[np.float64]:
    """Return Diffusion Policy's observation [..., 60] of the positions [..., 30]: they, then the masked goal.

    Raises:
        ValueError: another number of positions.
    """
    checked = _checked(positions, N_POSITIONS, "positions")
    return np.concatenate([checked, np.zeros_like(checked)], axis=-1)


def to_diffusion_policy(observation: ArrayLike) -> NDArray[np.float64]:
    """Return Diffusion Policy's observation [..., 60] of gymnasium-robotics' [..., 59], whose velocities it lacks.

    Raises:
        ValueError: not 59 numbers.
    """
    checked = _checked(observation, N_GYMNASIUM_ROBOTICS, "gymnasium-robotics' observation")
    objects = slice(2 * N_ROBOT, 2 * N_ROBOT + N_OBJECT)
    return with_goal(np.concatenate([checked[..., :N_ROBOT], checked[..., objects]], axis=-1))


def to_gymnasium_robotics(observation: ArrayLike, velocities: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return gymnasium-robotics' observation [..., 59] of Diffusion Policy's [..., 60] and the velocities it lacks.

    Args:
        observation: [..., 60]; its goal must be masked, since the other form has no place for one.
        velocities: [..., 29], MuJoCo's `qvel`: nine of the robot, 20 of the objects.

    Raises:
        ValueError: another number of either, no velocities, which would have to be invented, or a goal that is not
            zero, which would get lost.
    """
    checked = _checked(observation, N_DIFFUSION_POLICY, "Diffusion Policy's observation")
    if velocities is None:
        raise ValueError(
            f"Kitchen: Diffusion Policy's observation has no velocities, and inventing them would be wrong: give the "
            f"{N_VELOCITIES} of the same step, MuJoCo's qvel."
        )
    moving = _checked(velocities, N_VELOCITIES, "velocities")
    if checked[..., N_POSITIONS:].any():
        raise ValueError(
            "Kitchen: this observation has a goal that is not zero, for which gymnasium-robotics' observation has no "
            "place: drop it on purpose by setting the last 30 numbers to zero."
        )
    robot, objects = checked[..., :N_ROBOT], checked[..., N_ROBOT:N_POSITIONS]
    return np.concatenate([robot, moving[..., :N_ROBOT], objects, moving[..., N_ROBOT:]], axis=-1)


def _checked(numbers: ArrayLike, size: int, name: str) -> NDArray[np.float64]:
    array = np.asarray(numbers, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"Kitchen: {name} must be [..., {size}], but has shape {list(array.shape)}.")
    return array
