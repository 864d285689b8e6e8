"""Push-T is the same task in a mirror: the T, its goal pose and the board look alike across one diagonal.

The axis of the T at its goal (256, 256, pi / 4) lies on the line x + y = 512. Reflected there, a demonstration is a
demonstration again: the block is its own mirror image, the goal stays where it is, and friction knows no left and
right. The four walls map to each other up to a pixel, and start states come from nearly the same square.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.pusht.geometry import BLOCK_KEYPOINTS_LOCAL

_BOARD = 512.0  # pixels along an edge


def mirror(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return demonstrated steps as they would be in the mirror, for `task.symmetry`.

    Args:
        columns: of N steps each: "state" [N, 5] and "action" [N, 2] in pixels and radians, as far as they are there
            "keypoint" [N, 9, 2] in pixels and "img" [N, 96, 96, 3] or any other square; "keypoint" needs "state".

    Returns:
        The same columns, shapes and types. Angles are in 0 .. 2 pi.

    Raises:
        KeyError: a column that has no mirror image here, or keypoints without the state they follow from.
    """
    unknown = sorted(set(columns) - set(_MIRRORS))
    if unknown:
        raise KeyError(f"no mirror image is known of {', '.join(unknown)}; known are {', '.join(_MIRRORS)}")
    if "keypoint" in columns and "state" not in columns:
        raise KeyError("keypoints are mirrored by the pose of the block: 'keypoint' needs the column 'state'")
    return {name: _MIRRORS[name](columns).astype(column.dtype) for name, column in columns.items()}


def _points(points: NDArray[Any]) -> NDArray[np.float64]:
    """Reflect points [..., 2] across x + y = 512."""
    return _BOARD - np.asarray(points, dtype=np.float64)[..., ::-1]


def _state(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    agent, block, angle = np.split(np.asarray(columns["state"], dtype=np.float64), [2, 4], axis=1)
    return np.concatenate([_points(agent), _points(block), (np.pi / 2 - angle) % (2 * np.pi)], axis=1)


def _keypoints(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Place the nine points anew: they are not spread symmetrically over the block."""
    state = _state(columns)
    cos, sin = np.cos(state[:, 4]), np.sin(state[:, 4])
    rotations = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
    return np.einsum("nij,kj->nki", rotations, BLOCK_KEYPOINTS_LOCAL) + state[:, None, 2:4]


def _images(columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Exchange rows (y) and columns (x), both reversed."""
    return columns["img"][:, ::-1, ::-1].swapaxes(1, 2)


_MIRRORS: dict[str, Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]] = {
    "state": _state,
    "action": lambda columns: _points(columns["action"]),
    "keypoint": _keypoints,
    "img": _images,
}
