"""A scripted demonstrator for BlockPush: it pushes either block first, into either target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.block_push.starts import BLOCKS, EFFECTOR_TARGET, TARGETS, WORKSPACE, Numbers

CONTACT = 0.025  # metres between the centres of a block and of the tool that touches the middle of its side
CLEARANCE = 0.043  # at which the tool passes a block's centre: half its diagonal, the tool, and some room
BLOCK_CLEARANCE = 0.085  # at which a pushed block passes the other one
LOST_SIDE, LOST_FRONT = 0.012, 0.013  # the tool no longer pushes: so far to the side, or no longer so far behind
LOST_GOAL = 0.045  # a block that was pushed further than this from its target is taken up again
TURNING_ARM, LARGEST_ARM = 0.02, 0.01  # metres beside the middle per radian to turn a block, and at most
LARGEST_ERROR = 1.0  # radians from which another side of the block is chosen
NEAR = 0.008  # metres from a place that count as there
BRAKING = 0.06  # metres before the goal from which pushing slows down


@dataclass(frozen=True)
class Plan:
    """What a demonstrator draws at the start of an episode."""

    legs: tuple[tuple[int, int], tuple[int, int]]  # block and target, in the order of pushing
    travel: float  # metres a step when the tool is free
    push: float  # metres a step when it pushes
    standoff: float  # metres behind the block's centre from which a push begins
    stop: float  # metres between the centres at which a push ends
    turn: int  # 1 or -1: on which side to pass what lies straight ahead


def draw_plan(rng: np.random.Generator) -> Plan:
    """Draw one of the four orders, all equally likely, and the manner of moving."""
    block, target = (int(number) for number in rng.integers(2, size=2))
    return Plan(
        legs=((block, target), (1 - block, 1 - target)),
        travel=rng.uniform(0.02, 0.03),
        push=rng.uniform(0.012, 0.02),
        standoff=rng.uniform(0.05, 0.065),
        stop=rng.uniform(0.015, 0.03),
        turn=int(rng.choice([-1, 1])),
    )


class Demonstrator:
    """Plays one episode: moves behind a block, pushes it into a target, then the other block into the other target.

    While pushing, the tool keeps behind the block on the line to the goal, a little beside it when the block has to be
    turned so that its side faces the goal. It begins anew when the block has slipped away.

    Args:
        seed: of the plan.
    """

    def __init__(self, seed: int) -> None:
        self.plan = draw_plan(np.random.default_rng(seed))
        self._leg = 0
        self._pushing = False
        self._yaw_error = 0.0  # radians to the side that was chosen to face the goal

    def act(self, observation: Numbers) -> Numbers:
        """Return the target [2] of the effector for an observation [16]: x, y in metres, inside the workspace."""
        tool = observation[EFFECTOR_TARGET]
        blocks = [observation[part][:2] for part in BLOCKS]
        targets = [observation[part][:2] for part in TARGETS]
        self._choose_leg(blocks, targets)
        block, target = self.plan.legs[self._leg]
        goal = steer_around(blocks[block], targets[target], [blocks[1 - block]], BLOCK_CLEARANCE, self.plan.turn)
        forward = _unit(goal - blocks[block])
        arm = self._arm(float(np.arctan2(forward[1], forward[0]) - observation[BLOCKS[block]][2]))
        move = self._push(tool, blocks[block], forward, arm, float(np.linalg.norm(targets[target] - blocks[block])))
        if move is None:
            move = self._approach(tool, blocks, block, forward, arm)
        command: Numbers = (tool + move).clip(*WORKSPACE)
        return command

    def _choose_leg(self, blocks: Sequence[Numbers], targets: Sequence[Numbers]) -> None:
        """Go on to the second block when the first is in place, and back if it has been pushed away again."""
        block, target = self.plan.legs[0]
        distance = float(np.linalg.norm(targets[target] - blocks[block]))
        leg = int(distance < (self.plan.stop if self._leg == 0 else LOST_GOAL))
        if leg != self._leg:
            self._leg, self._pushing, self._yaw_error = leg, False, 0.0

    def _arm(self, angle: float) -> float:
        """Return how far to the left of the block's middle to push, `angle` radians before it lies as it shall."""
        # The side that is nearest now may be another one than a step ago; changing over at once would turn the block
        # to and fro.
        error = self._yaw_error + quarter_turn_error(angle - self._yaw_error)
        self._yaw_error = error if abs(error) < LARGEST_ERROR else quarter_turn_error(error)
        return float(np.clip(-TURNING_ARM * self._yaw_error, -LARGEST_ARM, LARGEST_ARM))

    def _push(self, tool: Numbers, block: Numbers, forward: Numbers, arm: float, remaining: float) -> Numbers | None:
        """Return the next move of a push, or None if the tool is not behind the block."""
        if not self._pushing:
            return None
        left = _left_of(forward)
        beside = float((tool - block) @ left) - arm
        behind = float((block - tool) @ forward)
        if abs(beside) > LOST_SIDE or behind < LOST_FRONT:
            self._pushing = False
            return None
        speed = self.plan.push * min(1.0, 0.35 + remaining / BRAKING)
        move: Numbers = forward * speed - left * float(np.clip(beside, -speed, speed))
        return move

    def _approach(self, tool: Numbers, blocks: Sequence[Numbers], block: int, forward: Numbers, arm: float) -> Numbers:
        """Return the next move to the place behind the block, around both blocks."""
        place = (blocks[block] - forward * self.plan.standoff + _left_of(forward) * arm).clip(*WORKSPACE)
        remaining = float(np.linalg.norm(place - tool))
        self._pushing = remaining < NEAR
        # A place beside the other block can be reached only if that is no longer kept away from.
        obstacles = blocks if remaining > CLEARANCE else [blocks[block]]
        move: Numbers = steer_around(tool, place, obstacles, CLEARANCE, self.plan.turn) - tool
        distance = float(np.linalg.norm(move))
        return move if distance <= self.plan.travel else move * (self.plan.travel / distance)


def steer_around(start: Numbers, goal: Numbers, obstacles: Sequence[Numbers], clearance: float, turn: int) -> Numbers:
    """Return where to go from `start` [2] next: to `goal` [2], or past the first obstacle that lies on the way.

    Args:
        start: x, y of what moves.
        goal: x, y it shall reach.
        obstacles: centres [2] to keep away from.
        clearance: how far, in metres; from inside this distance the way leads out first.
        turn: 1 passes an obstacle that lies straight ahead on the left, -1 on the right.
    """
    way = goal - start
    length = float(np.linalg.norm(way))
    if length < 1e-9:
        return goal
    forward = way / length
    left = _left_of(forward)
    blocking = []
    for centre in obstacles:
        ahead, beside = float((centre - start) @ forward), float((centre - start) @ left)
        passed = np.clip(ahead, 0.0, length)
        if np.linalg.norm(start + passed * forward - centre) < clearance and ahead > 0:
            blocking.append((ahead, beside, centre))
    if not blocking:
        return goal
    _, beside, centre = min(blocking, key=lambda obstacle: obstacle[0])
    side = turn if abs(beside) < 0.2 * clearance else -np.sign(beside)
    around: Numbers = centre + side * left * 1.25 * clearance
    return around


def quarter_turn_error(angle: float) -> float:
    """Return `angle` in -pi/4..pi/4: a square block looks the same after a quarter turn."""
    return (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _left_of(direction: Numbers) -> Numbers:
    return np.array([-direction[1], direction[0]])


def _unit(vector: Numbers) -> Numbers:
    unit: Numbers = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return unit
