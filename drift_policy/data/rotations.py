"""Rotations as axis-angle vectors, as matrices, and as the six numbers that networks predict.

- Axis-angle [..., 3]: the unit axis times the angle in radians.
- Matrix [..., 3, 3]: turns column vectors, `rotated = matrix @ vector`.
- 6-D [..., 6]: the first two ROWS of the matrix, one after the other. This is the order of pytorch3d, and with it of
  Diffusion Policy. Zhou et al. (2019), who introduced the representation, take the first two columns; their numbers are
  those of the inverse rotation here.

Everything is computed and returned in float64: near half a turn float32 loses half of its digits.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Vectors up to this length have no direction; of a projected vector, up to this part of what it was before.
SMALLEST_LENGTH = 1e-8


def axis_angle_to_matrix(axis_angle: ArrayLike) -> NDArray[np.float64]:
    """Convert axis-angle vectors [..., 3] of any length to rotation matrices [..., 3, 3].

    Raises:
        ValueError: the last axis does not have length 3.
    """
    vector = _checked(axis_angle, (3,))
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    cross = _cross_product_matrix(vector)
    # Rodrigues' formula for a vector that is not normalised. np.sinc(x) is sin(pi x) / (pi x), exact at 0 as well.
    sine = np.sinc(angle / np.pi)  # sin(angle) / angle
    one_minus_cosine = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2  # (1 - cos(angle)) / angle ** 2
    return np.eye(3) + sine * cross + one_minus_cosine * (cross @ cross)


def matrix_to_axis_angle(matrix: ArrayLike) -> NDArray[np.float64]:
    """Convert rotation matrices [..., 3, 3] to axis-angle vectors [..., 3] with angles from 0 to pi.

    At exactly half a turn both directions of the axis are the same rotation; one of them is returned. Matrices that are
    not rotations give meaningless vectors: project predictions with `rotation_6d_to_matrix` first.

    Raises:
        ValueError: the last two axes do not have lengths 3 and 3.
    """
    quaternion = _matrix_to_quaternion(_checked(matrix, (3, 3)))
    # q and -q are the same rotation; the one with a positive real part has the angle of at most pi.
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    sine = np.linalg.norm(imaginary, axis=-1, keepdims=True)  # of half the angle
    angle = 2 * np.arctan2(sine, real)
    scale = np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 0)
    return scale * imaginary


def matrix_to_rotation_6d(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the first two rows of matrices [..., 3, 3] as [..., 6].

    Raises:
        ValueError: the last two axes do not have lengths 3 and 3.
    """
    checked = _checked(matrix, (3, 3))
    return checked[..., :2, :].reshape(*checked.shape[:-2], 6).copy()


def rotation_6d_to_matrix(rotation_6d: ArrayLike) -> NDArray[np.float64]:
    """Project six numbers [..., 6] to rotation matrices [..., 3, 3] by the Gram-Schmidt process.

    The first three numbers give the direction of the first row, what the last three have orthogonal to it gives that of
    the second. Six numbers that are rows of a rotation already come back unchanged.

    Raises:
        ValueError: the last axis does not have length 6, or the two vectors name no rotation: not finite, zero, or
            parallel.
    """
    numbers = _checked(rotation_6d, (6,))
    _require_rotations(np.asarray(np.isfinite(numbers).all(axis=-1, keepdims=True)), numbers)
    first, second = numbers[..., :3], numbers[..., 3:]
    row_0 = _normalized(first, np.ones_like(first[..., :1]), numbers)
    orthogonal = second - (row_0 * second).sum(axis=-1, keepdims=True) * row_0
    row_1 = _normalized(orthogonal, np.linalg.norm(second, axis=-1, keepdims=True), numbers)
    return np.stack([row_0, row_1, np.cross(row_0, row_1)], axis=-2)


def axis_angle_to_rotation_6d(axis_angle: ArrayLike) -> NDArray[np.float64]:
    """Convert axis-angle vectors [..., 3] to 6-D [..., 6]; ValueError for another last axis."""
    return matrix_to_rotation_6d(axis_angle_to_matrix(axis_angle))


def rotation_6d_to_axis_angle(rotation_6d: ArrayLike) -> NDArray[np.float64]:
    """Convert 6-D [..., 6], also if it is no exact rotation, to axis-angle vectors [..., 3] with angles from 0 to pi.

    Raises:
        ValueError: as `rotation_6d_to_matrix`.
    """
    return matrix_to_axis_angle(rotation_6d_to_matrix(rotation_6d))


def _checked(array: ArrayLike, last_axes: tuple[int, ...]) -> NDArray[np.float64]:
    values = np.asarray(array, dtype=np.float64)
    if values.shape[-len(last_axes) :] != last_axes:
        raise ValueError(f"expected the shape [..., {', '.join(map(str, last_axes))}], got {list(values.shape)}")
    return values


def _cross_product_matrix(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return K [..., 3, 3] with K @ v == cross(vector, v)."""
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _matrix_to_quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit quaternions [..., 4], real part first.

    Every row of the symmetric 4 x 4 matrix of products 4 q_i q_j is the quaternion times a number. The row with the
    largest diagonal entry (at least 1, as the four sum to 4) is the one that rounding hurts least.
    """
    m = matrix
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = [
        [1 + m00 + m11 + m22, wx, wy, wz],
        [wx, 1 + m00 - m11 - m22, xy, xz],
        [wy, xy, 1 - m00 + m11 - m22, yz],
        [wz, xz, yz, 1 - m00 - m11 + m22],
    ]
    products = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)  # [..., 4, 4]
    largest = np.argmax(np.diagonal(products, axis1=-2, axis2=-1), axis=-1)[..., None, None]
    row = np.take_along_axis(products, largest, axis=-2)[..., 0, :]
    quaternion: NDArray[np.float64] = row / np.linalg.norm(row, axis=-1, keepdims=True)
    return quaternion


def _normalized(
    vector: NDArray[np.float64], reference: NDArray[np.float64], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Divide [..., 3] by its length, which must be more than a rounding error of `reference` [..., 1]."""
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    _require_rotations(length > SMALLEST_LENGTH * reference, numbers)
    return vector / length


def _require_rotations(valid: NDArray[np.bool_], numbers: NDArray[np.float64]) -> None:
    """Raise unless all of `valid` [..., 1] is true; the message shows the first numbers [..., 6] of which it is not."""
    if not valid.all():
        first = numbers[~valid[..., 0]][0].tolist()
        raise ValueError(
            f"the six numbers {first} name no rotation: they must be two finite vectors, neither zero nor parallel"
        )
