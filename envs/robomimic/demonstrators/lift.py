"""Lift: grasp the cube by either pair of its sides, and raise it."""

from collections.abc import Sequence

import numpy as np

from envs.robomimic.demonstrators.base import (
    CLOSED,
    Demonstrator,
    Phase,
    Target,
    equal_yaws,
    yaw_of,
)


class LiftDemonstrator(Demonstrator):
    """Grasps the cube where it lies and raises it by 6 to 10 cm."""

    speeds = (0.55, 0.85)

    def phases(self) -> Sequence[Phase]:
        """Return approach, grasp and rise."""
        cube = self.env.cube_body_id
        yaws = equal_yaws(yaw_of(self.body_rotation(cube)), np.pi / 2)
        rotation = self.downwards(yaws[self.choose_way([abs(yaw - self.grip_yaw) for yaw in yaws])])
        offset = np.append(self.rng.uniform(-0.004, 0.004, 2), self.rng.uniform(-0.002, 0.007))
        table = self.env.model.mujoco_arena.table_offset[2]
        height = table + self.rng.uniform(0.08, 0.12)
        width = 2 * float(self.env.cube.size[1])

        def grasp() -> Target:
            return Target(self.body_position(cube) + offset, rotation, CLOSED)

        def raised() -> Target:
            position = self.grip_position
            return Target(np.array([position[0], position[1], height]), rotation, CLOSED)

        return [self.approach(grasp), Phase(grasp, lambda: self.holds(width)), Phase(raised, lambda: False)]
