"""Square: take the square nut by its handle, turn it and let it down over the square peg."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from envs.robomimic.demonstrators.base import (
    CLOSED,
    MOVE_RANGE,
    OPEN,
    OPEN_WIDTH,
    WRIST_LIMIT,
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
FINAL_YAWS = (np.pi / 2, np.pi, -np.pi / 2)  # of the nut on the peg, whose sides are parallel to x and y
ON_TABLE, CARRIED = 0.83, 1.0  # metres above the ground, of the nut's centre; the peg ends at 0.95


class SquareDemonstrator(Demonstrator):
    """Takes the handle from either side, fits the nut in one of its four ways, and lowers or drops it."""

    def phases(self) -> Sequence[Phase]:
        """Return approach, grasp, carrying, release and retreat."""
        rng, env = self.rng, self.env
        self._nut = env.obj_body_id[env.nuts[SQUARE].name]
        self._peg = self.body_position(env.peg1_body_id)[:2]
        ways = self._ways()
        grip_yaw, turn = ways[self.choose_way([abs(grip - self.grip_yaw) + abs(turn) for grip, turn in ways])]
        self._turned = about_vertical(yaw_of(self.body_rotation(self._nut)) + turn)
        rotation = self.downwards(grip_yaw)
        along = np.array([rng.uniform(0.057, 0.068), rng.uniform(-0.002, 0.002), rng.uniform(-0.001, 0.004)])
        carried = CARRIED + rng.uniform(-0.01, 0.03)
        lowered = rng.random() < 0.5  # or dropped as soon as the peg is in the nut
        released = rng.uniform(0.845, 0.865) if lowered else rng.uniform(0.9, 0.935)

        def grasp() -> Target:
            return Target(self._in_world(along), rotation, CLOSED)

        def carry() -> Target:
            place, away = self.body_position(self._nut), self._away()
            left = (self._turned * self.body_rotation(self._nut).inv()).as_rotvec()  # to turn
            height = released - 0.01 + (carried - released + 0.01) * ramp(away + 0.02 * abs(left[2]), 0.004, 0.012)
            sideways = ramp(place[2], ON_TABLE + 0.02, ON_TABLE + 0.1)
            move = np.append(sideways * shortened(self._peg - place[:2], MOVE_RANGE), height - place[2])
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

    def _ways(self) -> list[tuple[float, float]]:
        """Return yaws at which the gripper can take the handle, each with turns after which the nut fits the peg.

        The nut fits in four ways, but where the handle would point away from the robot the arm is too short.
        """
        yaw = yaw_of(self.body_rotation(self._nut))
        return [
            (grip, turn)
            for grip in equal_yaws(yaw, np.pi)
            for turn in (wrapped(final - yaw, 2 * np.pi) for final in FINAL_YAWS)
            if abs(grip + turn) <= WRIST_LIMIT
        ]
