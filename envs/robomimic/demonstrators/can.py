"""Can: take the can out of the left bin and let go of it in its compartment of the right bin."""

from collections.abc import Sequence

import numpy as np

from envs.robomimic.demonstrators.base import (
    CLOSED,
    MOVE_RANGE,
    OPEN,
    OPEN_WIDTH,
    Demonstrator,
    Numbers,
    Phase,
    Target,
    about_vertical,
    ramp,
    shortened,
)

CAN = 3  # its number among the objects and compartments of robosuite
WIDTH = 0.05  # metres
STANDING = 0.06  # metres from its bottom to its centre


class CanDemonstrator(Demonstrator):
    """Carries the can over the wall between the bins, and puts it down or drops it."""

    speeds = (0.65, 0.95)

    def phases(self) -> Sequence[Phase]:
        """Return approach, grasp, carrying, release and retreat."""
        rng, env = self.rng, self.env
        can = env.obj_body_id[env.objects[CAN].name]
        rotation = self.downwards(self.grip_yaw + float(np.clip(rng.normal(0.0, 0.35), -0.8, 0.8)))
        offset = np.append(rng.uniform(-0.004, 0.004, 2), rng.uniform(0.012, 0.028))
        # The part of the compartment that is near the robot: beyond it the arm would be stretched out.
        goal = np.append(env.bin2_pos[:2] + rng.uniform([0.05, 0.05], [0.09, 0.11]), env.bin2_pos[2] + STANDING)
        base = env.robots[0].base_pos[:2]
        grasp_bearing = _bearing(self.body_position(can)[:2] - base)
        carried = goal[2] + rng.uniform(0.115, 0.15)  # height of the can's centre above the wall
        released = goal[2] + rng.uniform(0.02, 0.07)

        def away() -> float:
            return float(np.linalg.norm((goal - self.body_position(can))[:2]))

        def grasp() -> Target:
            return Target(self.body_position(can) + offset, rotation, CLOSED)

        def carry() -> Target:
            place = self.body_position(can)
            height = released + (carried - released) * ramp(away(), 0.03, 0.09)
            sideways = ramp(place[2], goal[2] + 0.02, goal[2] + 0.1)  # first up, then across the wall
            move = np.append(sideways * shortened((goal - place)[:2], MOVE_RANGE), height - place[2])
            # The gripper turns with the arm, which reaches farther in this way, and the wrist stays where it was.
            turn = about_vertical(_bearing(place[:2] - base) - grasp_bearing)
            return Target(self.grip_position + move, turn * rotation, CLOSED)

        def release() -> Target:
            return Target(self.grip_position, self.grip_rotation, OPEN)

        def retreat() -> Target:
            return Target(np.append(self.grip_position[:2], carried + 0.05), self.grip_rotation, OPEN)

        return [
            self.approach(grasp),
            Phase(grasp, lambda: self.holds(WIDTH)),
            Phase(carry, lambda: away() < 0.03 and self.body_position(can)[2] < released + 0.01),
            Phase(release, lambda: self.opening > OPEN_WIDTH),
            Phase(retreat, lambda: False),
        ]


def _bearing(offset: Numbers) -> float:
    return float(np.arctan2(offset[1], offset[0]))
