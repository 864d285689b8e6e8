"""Demonstrators that see the simulator's state and steer a Panda's gripper from target to target.

A demonstration has phases, each with a target that is computed anew every step. What is done follows from what can be
seen: targets depend on the poses of gripper and object, and a phase ends at a distance, a height or an opening of the
fingers, never after a time. A policy that sees the same can therefore learn it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Numbers = NDArray[np.float64]

OPEN, CLOSED = -1.0, 1.0  # the gripper's actions
OPEN_WIDTH = 0.07  # metres between the fingers from which on they count as open; at most 0.08
MOVE_RANGE, TURN_RANGE = 0.05, 0.5  # metres and radians of an action of 1
POINTING_DOWN = Rotation.from_matrix([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # at yaw 0, fingers along y
LEAST_YAW, LARGEST_YAW = -1.9, 2.6  # radians that the wrist reaches with room to spare
TURN_PREFERENCE = 0.35  # radians; of two ways, one that turns so much more is chosen e times as rarely
TREMOR_MEMORY = 0.8  # share of the tremor that is left after a step


@dataclass(frozen=True)
class Target:
    """Where the gripper shall be, and what its fingers shall do."""

    position: Numbers  # [3] of the point between the fingertips, metres
    rotation: Rotation  # of the gripper
    gripper: float  # OPEN or CLOSED


@dataclass(frozen=True)
class Phase:
    """A part of a demonstration."""

    target: Callable[[], Target]  # asked every step
    finished: Callable[[], bool]  # whether the next phase begins


@dataclass(frozen=True)
class Style:
    """How one demonstration differs from another; drawn once an episode."""

    move_speed: float  # length of the largest translation, as an action
    turn_speed: float  # length of the largest rotation, as an action
    gain: float  # share of the distance to the target that an action asks for
    curve: float  # sideways share of the approach: the sine of the angle at which it starts, left or right
    hover: float  # metres above the object at which it is approached

    @classmethod
    def draw(cls, rng: np.random.Generator, speeds: tuple[float, float]) -> "Style":
        """Draw a style, with a translation between the given speeds."""
        return cls(
            move_speed=rng.uniform(*speeds),
            turn_speed=rng.uniform(0.4, 0.6),
            gain=rng.uniform(1.2, 1.5),
            curve=rng.uniform(-0.35, 0.35),
            hover=rng.uniform(0.03, 0.08),
        )


class Demonstrator(ABC):
    """Steers one episode; made anew after every reset.

    Args:
        env: an environment of robosuite with one Panda, just reset.
        rng: everything that is random about the demonstration comes from it.
        noise: standard deviation of a tremor that is added to translations, in units of the action; half of it is added
            to rotations.
    """

    speeds: ClassVar[tuple[float, float]]  # slowest and fastest translation of a task, as an action

    def __init__(self, env: Any, rng: np.random.Generator, noise: float) -> None:
        self.env = env
        self.rng = rng
        self.style = Style.draw(rng, self.speeds)
        self._noise = noise
        self._tremor = np.zeros(6)
        self._phases = list(self.phases())

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the phases; the last one goes on until the episode ends."""

    def act(self) -> Numbers:
        """Return the action [7] for the present state: translation, rotation vector, gripper, all in [-1, 1]."""
        while len(self._phases) > 1 and self._phases[0].finished():
            self._phases.pop(0)
        target = self._phases[0].target()
        move = self.style.gain * (target.position - self.grip_position) / MOVE_RANGE
        turn = self.style.gain * (target.rotation * self.grip_rotation.inv()).as_rotvec() / TURN_RANGE
        action = np.concatenate([shortened(move, self.style.move_speed), shortened(turn, self.style.turn_speed)])
        spread = self._noise * np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
        self._tremor *= TREMOR_MEMORY
        self._tremor += spread * np.sqrt(1 - TREMOR_MEMORY**2) * self.rng.standard_normal(6)
        return np.append((action + self._tremor).clip(-1, 1), target.gripper)

    @property
    def grip_position(self) -> Numbers:
        """The point between the fingertips [3], metres."""
        return np.array(self.env.sim.data.site_xpos[self.env.robots[0].eef_site_id])

    @property
    def grip_rotation(self) -> Rotation:
        """The rotation of the gripper."""
        return Rotation.from_matrix(self.env.sim.data.site_xmat[self.env.robots[0].eef_site_id].reshape(3, 3))

    @property
    def grip_yaw(self) -> float:
        """The gripper's rotation about the vertical, radians; 0 as it starts, about."""
        return yaw_of(self.grip_rotation * POINTING_DOWN.inv())

    @property
    def opening(self) -> float:
        """Distance between the fingers, metres."""
        left, right = self.env.sim.data.qpos[self.env.robots[0]._ref_gripper_joint_pos_indexes]
        return float(left - right)

    def holds(self, width: float) -> bool:
        """Return whether the fingers have come to rest around something of this width in metres."""
        speeds = self.env.sim.data.qvel[self.env.robots[0]._ref_gripper_joint_vel_indexes]
        return self.opening < width + 0.006 and float(np.abs(speeds).max()) < 0.02

    def body_position(self, body: int) -> Numbers:
        """Return the position [3] of a body, metres."""
        return np.array(self.env.sim.data.body_xpos[body])

    def body_rotation(self, body: int) -> Rotation:
        """Return the rotation of a body."""
        return Rotation.from_matrix(self.env.sim.data.body_xmat[body].reshape(3, 3))

    def approach(self, grasp: Callable[[], Target]) -> Phase:
        """Return the phase that goes to a grasp with open fingers, from above, and until it is there.

        The gripper comes down as it comes near and its yaw fits. On the way it swings out to one side.
        """

        def target() -> Target:
            goal = grasp()
            offset = goal.position - self.grip_position
            away = float(np.hypot(offset[0], offset[1]))
            turned = abs(wrapped(yaw_of(goal.rotation * self.grip_rotation.inv()), 2 * np.pi))
            height = self.style.hover * ramp(away + 0.05 * turned, 0.01, 0.05)
            sideways = self.style.curve * ramp(away, 0.02, 0.06) * np.array([-offset[1], offset[0], 0.0])
            return Target(goal.position + sideways + np.array([0.0, 0.0, height]), goal.rotation, OPEN)

        return Phase(target, lambda: self.opening > OPEN_WIDTH and self.at(grasp()))

    def at(self, target: Target) -> bool:
        """Return whether the gripper is at a target: within 9 mm and 0.1 radians."""
        away = float(np.linalg.norm(target.position - self.grip_position))
        turned = (target.rotation * self.grip_rotation.inv()).magnitude()
        return away < 0.009 and turned < 0.1

    def choose_way(self, turns: Sequence[float]) -> int:
        """Choose one of several ways that serve equally well: mostly the one with the least to turn.

        Args:
            turns: radians that each way asks the gripper to turn.

        Returns:
            the number of the way.
        """
        weights = np.exp(-(np.array(turns) - min(turns)) / TURN_PREFERENCE)
        return int(self.rng.choice(len(turns), p=weights / weights.sum()))

    def downwards(self, yaw: float) -> Rotation:
        """Return the rotation of a gripper that points down, but for a tilt that is drawn now, of about a degree."""
        tilt = Rotation.from_rotvec([*self.rng.normal(0.0, 0.02, 2), 0.0])
        return tilt * about_vertical(yaw) * POINTING_DOWN


def about_vertical(yaw: float) -> Rotation:
    """Return the rotation by `yaw` radians about the vertical."""
    return Rotation.from_rotvec([0.0, 0.0, yaw])


def yaw_of(rotation: Rotation) -> float:
    """Return the part of a rotation that is about the vertical, in radians from -pi to pi."""
    matrix = rotation.as_matrix()
    return float(np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))


def wrapped(angle: float, period: float) -> float:
    """Return the angle nearest to 0 that differs by whole periods, all in radians."""
    return angle - period * round(angle / period)


def equal_yaws(yaw: float, period: float) -> list[float]:
    """Return all yaws that the wrist reaches and that differ from `yaw` by whole periods."""
    first = wrapped(yaw, period)
    candidates = [first + period * turns for turns in range(-8, 9)]
    return [candidate for candidate in candidates if LEAST_YAW <= candidate <= LARGEST_YAW]


def ramp(value: float, low: float, high: float) -> float:
    """Return 0 up to `low`, 1 from `high` on, and a straight line between."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def shortened(vector: Numbers, longest: float) -> Numbers:
    """Return a vector of the same direction that is no longer than `longest`."""
    length = float(np.linalg.norm(vector))
    return vector * (longest / length) if length > longest else vector
