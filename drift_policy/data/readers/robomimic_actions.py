"""Absolute actions of robomimic: rotations as six numbers for training, as axis-angle for the robot.

An arm is commanded with a position (3 numbers), a rotation and a gripper (1). Stored, and executed by robosuite, are 7
numbers an arm, the rotation as an axis-angle vector; a policy learns 10, the rotation as six continuous numbers.
Axis-angle jumps at half a turn, which is where a gripper that points down always is. Several arms follow one another.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.rotations import axis_angle_to_rotation_6d, rotation_6d_to_axis_angle
from drift_policy.errors import ConfigurationError, DataError

EXECUTED_PER_ARM = 7
LEARNED_PER_ARM = 10


def convert_actions(actions: NDArray[Any]) -> NDArray[Any]:
    """Convert [..., 7 A] with axis-angle rotations to [..., 10 A] with 6-D ones, A arms, in the same float dtype.

    Raises:
        DataError: the number of actions is no multiple of 7.
    """
    if actions.shape[-1] == 0 or actions.shape[-1] % EXECUTED_PER_ARM:
        raise DataError(
            f"Absolute actions have {EXECUTED_PER_ARM} numbers an arm (position 3, axis-angle 3, gripper 1), so 7 or "
            f"14, but these have {actions.shape[-1]}: read them with action_mode='delta', which changes nothing."
        )
    arms = actions.reshape(*actions.shape[:-1], -1, EXECUTED_PER_ARM)
    parts = [arms[..., :3], axis_angle_to_rotation_6d(arms[..., 3:6]), arms[..., 6:]]
    converted = np.concatenate(parts, axis=-1, dtype=actions.dtype, casting="same_kind")
    return converted.reshape(*actions.shape[:-1], -1)


def unconvert_actions(actions: NDArray[Any]) -> NDArray[Any]:
    """Convert what a policy predicts, [..., 10 A], to what robosuite executes, [..., 7 A], in the same float dtype.

    The six numbers need not be an exact rotation: they are projected to one.

    Raises:
        ConfigurationError: the number of actions is no multiple of 10.
        ValueError: six numbers that name no rotation, such as zeros or NaN.
    """
    if actions.shape[-1] == 0 or actions.shape[-1] % LEARNED_PER_ARM:
        raise ConfigurationError(
            f"A policy for absolute actions predicts {LEARNED_PER_ARM} numbers an arm (position 3, rotation 6, gripper "
            f"1), so 10 or 20, but this one predicts {actions.shape[-1]}: it was trained on other actions."
        )
    arms = actions.reshape(*actions.shape[:-1], -1, LEARNED_PER_ARM)
    parts = [arms[..., :3], rotation_6d_to_axis_angle(arms[..., 3:9]), arms[..., 9:]]
    executed = np.concatenate(parts, axis=-1, dtype=actions.dtype, casting="same_kind")
    return executed.reshape(*actions.shape[:-1], -1)
