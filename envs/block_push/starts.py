"""BlockPush numbers that need no simulator: the order of an observation, the workspace, the starts of the benchmark.

Lengths are metres and angles radians, in the frame of the robot's base: x forwards, y to its left, z up.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

# Where each part of an observation [16] is; blocks and targets are x, y, yaw. The order of Diffusion Policy's data.
BLOCKS = (slice(0, 3), slice(3, 6))
EFFECTOR, EFFECTOR_TARGET = slice(6, 8), slice(8, 10)
TARGETS = (slice(10, 13), slice(13, 16))
N_NUMBERS = 16
YAWS = (2, 5, 12, 15)

WORKSPACE = np.array([[0.15, -0.5], [0.7, 0.5]])  # lowest and highest x, y of the effector's target
EFFECTOR_START = (0.3, -0.4)
EFFECTOR_MARGIN = 0.1  # how far the effector itself may be outside the workspace
TABLE = 5.0  # blocks and targets lie within this distance of the base, in x and in y
STATE_HELP = (
    "sixteen numbers as an observation has them: x, y, yaw of block 1 and of block 2, x, y of the effector and of its "
    "target, x, y, yaw of target 1 and of target 2 (metres, radians)"
)

_CENTER = 0.4  # x between the two targets, and of the middle of the blocks' area
_MIN_BLOCK_DISTANCE = 0.1  # between the blocks, in x
_ATTEMPTS = 1000

LOW = np.full(N_NUMBERS, -TABLE)
HIGH = np.full(N_NUMBERS, TABLE)
for _part in (EFFECTOR, EFFECTOR_TARGET):
    LOW[_part], HIGH[_part] = WORKSPACE[0] - EFFECTOR_MARGIN, WORKSPACE[1] + EFFECTOR_MARGIN
LOW[list(YAWS)], HIGH[list(YAWS)] = 0.0, np.pi
LOW.setflags(write=False)
HIGH.setflags(write=False)


def benchmark_start(seed: int) -> Numbers:
    """The state [16] that Diffusion Policy's BlockPush benchmark (`BlockPushMultimodal`) draws for a seed.

    Both blocks lie at x 0.3..0.5 and y -0.35..-0.05, more than 0.1 apart in x; one target near (0.28, 0.2), the other
    near (0.52, 0.2), which is which being random, turned by up to 6 degrees; the effector is at (0.3, -0.4).

    Args:
        seed: 0 to 2**32 - 1.
    """
    draw = np.random.RandomState(seed)
    state = np.empty(N_NUMBERS)
    state[BLOCKS[0]], state[BLOCKS[1]] = _draw_blocks(draw)
    side = 0.12 * draw.choice([-1, 1])
    for target, offset in zip(TARGETS, (side, -side), strict=True):
        state[target] = (
            _CENTER + offset + draw.uniform(-0.005, 0.005),
            0.2 + draw.uniform(-0.0075, 0.0075),
            np.pi + draw.uniform(-np.pi / 30, np.pi / 30),
        )
    state[EFFECTOR] = state[EFFECTOR_TARGET] = EFFECTOR_START
    state[list(YAWS)] %= np.pi
    return state


def _draw_blocks(draw: np.random.RandomState) -> tuple[Numbers, Numbers]:
    for _ in range(_ATTEMPTS):
        first = np.array([*_draw_place(draw), _draw_yaw(draw)])
        for _ in range(_ATTEMPTS):
            place = _draw_place(draw)
            if abs(place[0] - first[0]) > _MIN_BLOCK_DISTANCE:
                break
        second = np.array([*place, _draw_yaw(draw)])
        if abs(second[0] - first[0]) > _MIN_BLOCK_DISTANCE:
            return first, second
    raise AssertionError("unreachable: two places are far enough apart in a quarter of all draws")


def _draw_place(draw: np.random.RandomState) -> tuple[float, float]:
    x = _CENTER + draw.uniform(-0.1, 0.1)
    return x, -0.2 + draw.uniform(-0.15, 0.15)


def _draw_yaw(draw: np.random.RandomState) -> float:
    # The benchmark gives only the lower bound, pi, and the upper one is then 1 radian.
    return draw.uniform(np.pi, 1.0)


def checked_state(state: ArrayLike) -> Numbers:
    """`state` as sixteen float64 numbers, yaws brought to 0..pi.

    Raises:
        ValueError: another shape, a number that is not finite, or a place outside the table or the workspace.
    """
    try:
        numbers = np.array(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"BlockPush: options['state'] is {state!r}; give {STATE_HELP}.") from error
    if numbers.shape != (N_NUMBERS,):
        raise ValueError(f"BlockPush: options['state'] has shape {numbers.shape}; give {STATE_HELP}.")
    if not np.isfinite(numbers).all():
        raise ValueError(f"BlockPush: options['state'] is {numbers.tolist()}; all sixteen numbers must be finite.")
    numbers[list(YAWS)] %= np.pi
    outside = np.flatnonzero((numbers < LOW) | (numbers > HIGH))
    if len(outside):
        index = int(outside[0])
        raise ValueError(
            f"BlockPush: number {index} of options['state'] is {numbers[index]:g}, but must lie in "
            f"{LOW[index]:g}..{HIGH[index]:g}; give {STATE_HELP}."
        )
    return numbers
