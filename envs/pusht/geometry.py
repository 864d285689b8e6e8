"""Push-T numbers that need no simulator: the observed keypoints of the block and the start states of the benchmark.

A state is five numbers: agent x, agent y, block x, block y in pixels of the 512 x 512 board (y points down), block
angle in radians. Block x, y is the origin of the block's own frame: the middle of the outer edge of the T's bar.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Nine points of the block in its own frame [9, 2], in pixels, as recorded from Diffusion Policy's environment. They
# follow from no formula of the T's vertices (x in -60..60, y in 0..120): they are spread over a rendering of the block,
# whose outline puts some of them 1 to 3 pixels outside the T.
BLOCK_KEYPOINTS_LOCAL: NDArray[np.float64] = np.array(
    [
        [9.269786713763871, 90.04097352393619],
        [-60.983472364471474, -1.1867297607997276],
        [60.91275557727772, -1.3933642242328201],
        [-0.2705034390160016, 25.54362499146542],
        [-14.064927576212233, 122.81585355412153],
        [39.002738500170146, 32.857404276587566],
        [-39.966414424694534, 32.729655446429945],
        [-16.82434437939744, 62.86317892234989],
        [23.54146122024909, -1.7002881094626152],
    ]
)
BLOCK_KEYPOINTS_LOCAL.setflags(write=False)

# The block turns about this point of its own frame, in pixels: midway between the centres of its bar and its stem.
BLOCK_CENTER_OF_GRAVITY: NDArray[np.float64] = np.array([0.0, 45.0])
BLOCK_CENTER_OF_GRAVITY.setflags(write=False)


def rotation(angle: float) -> NDArray[np.float64]:
    """Matrix [2, 2] that turns column vectors by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def block_keypoints(position: Sequence[float], angle: float) -> NDArray[np.float64]:
    """Where the nine keypoints [9, 2] of the block lie on the board, in pixels.

    Args:
        position: block x, y in pixels.
        angle: block angle in radians.
    """
    keypoints: NDArray[np.float64] = BLOCK_KEYPOINTS_LOCAL @ rotation(angle).T + np.asarray(position)
    return keypoints


def benchmark_start(seed: int) -> NDArray[np.float64]:
    """The five numbers [5] that Diffusion Policy's Push-T benchmark draws for a seed (0 to 2**32 - 1).

    The benchmark applies them position first, angle second, about the centre of gravity. The block it then observes has
    moved: see `legacy_start`.
    """
    random_state = np.random.RandomState(seed)
    agent = [random_state.randint(50, 450) for _ in range(2)]
    block = [random_state.randint(100, 400) for _ in range(2)]
    angle = random_state.randn() * 2 * np.pi - np.pi
    return np.array([*agent, *block, angle], dtype=np.float64)


def legacy_start(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """The five numbers [5] to hand to gym-pusht's `reset_to_state` so that it ends up in `state` [5].

    gym-pusht, like the benchmark, puts the upright block at the given position and then turns it about its centre of
    gravity, which moves the block's origin. This undoes that move.
    """
    start = np.array(state, dtype=np.float64)
    start[2:4] += rotation(start[4]) @ BLOCK_CENTER_OF_GRAVITY - BLOCK_CENTER_OF_GRAVITY
    return start
