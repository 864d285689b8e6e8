"""Square: take the square nut by its handle, turn it and let it down over the square peg."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from envs.robomimic.demonstrators.base import (
    CLOSED,
    LEAST_YAW,
    MOVE_RANGE,
    OPEN,
    OPEN_WIDTH,
    Demonstrator,
    Numbers,
    Phase,
    Target,
    about_vertical,
    equal_yaws,
    ramp,
    shortened,
    wrapped,
    yaw_of,
)

SQUARE = 0  # its number among the nuts of robosuite
HANDLE_WIDTH = 0.032  # metres
TOWARDS_ROBOT = np.pi  # yaw of the nut with which its handle points to the robot
FINAL_YAWS = (np.pi / 2, TOWARDS_ROBOT, -np.pi / 2)  # at which it fits; at the fourth, 0, the arm is too short
STRETCHING = 0.7  # radians of turning that are preferred to stretching the arm
ON_TABLE, CARRIED = 0.83, 0.985  # metres above the ground, of the nut's centre; the peg ends at 0.95


@dataclass(frozen=True)
class _Way:
    """One of the ways to take the nut and to fit it onto the peg."""

    grip_yaw: float  # yaw of the gripper at the handle, radians
    turn: float  # by which the nut is turned then, radians
    stretched: bool  # whether the arm is all but straight at the peg
    effort: float  # radians to turn altogether, and the preference against stretching


class SquareDemonstrator(Demonstrator):
    """Takes the handle from either side, fits the nut in one of three ways, and lowers or drops it."""

    speeds = (0.65, 0.95)

    def phases(self) -> Sequence[Phase]:
        """Return approach, grasp, carrying, release and retreat."""
        rng, env = self.rng, self.env
        self._nut = env.obj_body_id[env.nuts[SQUARE].name]
        self._peg = self.body_position(env.peg1_body_id)[:2]
        ways = self._ways()
        way = ways[self.choose_way([way.effort for way in ways])]
        self._turned = about_vertical(yaw_of(self.body_rotation(self._nut)) + way.turn)
        rotation = self.downwards(way.grip_yaw)
        along = np.array([rng.uniform(0.057, 0.068), rng.uniform(-0.002, 0.002), rng.uniform(-0.001, 0.004)])
        carried = CARRIED + rng.uniform(-0.01, 0.015)
        lowered = not way.stretched and rng.random() < 0.5  # or dropped as soon as the peg is in the nut
        released = rng.uniform(0.845, 0.865) if lowered else rng.uniform(0.915, 0.94)

        def grasp() -> Target:
            return Target(self._in_world(along), rotation, CLOSED)

        def carry() -> Target:
            place, away = self.body_position(self._nut), self._away()
            left = (self._turned * self.body_rotation(self._nut).inv()).as_rotvec()  # to turn
            height = released - 0.01 + (carried - released + 0.01) * ramp(away + 0.02 * abs(left[2]), 0.004, 0.012)
            sideways = ramp(place[2], ON_TABLE + 0.02, ON_TABLE + 0.1)
            move = np.append(sideways * shortened(self._peg - place[:2], MOVE_RANGE), height - place[2])
            if way.stretched:  # the gripper must lean outwards, and the nut with it
                left[:2] = 0.0
            turn = Rotation.from_rotvec(left * ramp(place[2], ON_TABLE, ON_TABLE + 0.03))
            return Target(self.grip_position + move, turn * self.grip_rotation, CLOSED)

        def release() -> Target:
            return Target(self.grip_position, self.grip_rotation, OPEN)

        def retreat() -> Target:
            return Target(np.append(self.grip_position[:2], carried + 0.05), self.grip_rotation, OPEN)

        return [
            self.approach(grasp),
            Phase(grasp, lambda: self.holds(HANDLE_WIDTH)),
            Phase(carry, lambda: self._away() < 0.006 and self.body_position(self._nut)[2] < released),
            Phase(release, lambda: self.opening > OPEN_WIDTH),
            Phase(retreat, lambda: False),
        ]

    def _in_world(self, point: Numbers) -> Numbers:
        return self.body_position(self._nut) + self.body_rotation(self._nut).apply(point)

    def _away(self) -> float:
        """Horizontal distance of the nut's centre to the peg's, metres."""
        return float(np.linalg.norm(self._peg - self.body_position(self._nut)[:2]))

    def _ways(self) -> list[_Way]:
        """Return the ways of taking the nut and fitting it onto the peg that are within reach."""
        yaw = yaw_of(self.body_rotation(self._nut))
        ways = []
        for grip_yaw in equal_yaws(yaw, np.pi):
            for final_yaw in FINAL_YAWS:
                turn = wrapped(final_yaw - yaw, 2 * np.pi)
                if LEAST_YAW <= grip_yaw + turn <= -LEAST_YAW:
                    stretched = final_yaw != TOWARDS_ROBOT
                    effort = abs(grip_yaw - self.grip_yaw) + abs(turn) + stretched * STRETCHING
                    ways.append(_Way(grip_yaw, turn, stretched, effort))
        return ways
