"""Rotation conversions agree with scipy's and undo each other, at no angle and at half a turn too."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from drift_policy.data import rotations

Array = NDArray[np.float64]
ANGLES = [0.0, 1e-300, 1e-12, 1e-7, 1e-3, 1.0, np.pi / 2, np.pi - 1e-3, np.pi - 1e-7, np.pi - 1e-12, np.pi]


@st.composite
def unit_vectors(draw: st.DrawFn) -> Array:
    """Directions, those with zero components and nearly equal ones included."""
    numbers = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-9]), st.floats(-1, 1))
    vector = np.array(draw(st.tuples(numbers, numbers, numbers).filter(lambda v: np.linalg.norm(v) > 1e-3)))
    return vector / np.linalg.norm(vector)


@st.composite
def axis_angles(draw: st.DrawFn) -> Array:
    """Vectors of angles from 0 to pi, often at and near both ends."""
    angle = draw(st.one_of(st.sampled_from(ANGLES), st.floats(0, np.pi)))
    return draw(unit_vectors()) * angle


def random_rotations(*shape: int) -> Array:
    """Matrices [*shape, 3, 3], uniform over all rotations."""
    matrices = Rotation.random(int(np.prod(shape)), random_state=0).as_matrix()
    return matrices.reshape(*shape, 3, 3)


@given(axis_angles())
def test_axis_angles_become_the_matrices_of_scipy(vector: Array) -> None:
    expected = Rotation.from_rotvec(vector).as_matrix()
    np.testing.assert_allclose(rotations.axis_angle_to_matrix(vector), expected, atol=1e-14)


@given(axis_angles())
def test_axis_angles_survive_the_way_through_matrices_and_6d(vector: Array) -> None:
    matrix = rotations.axis_angle_to_matrix(vector)
    for back in (
        rotations.matrix_to_axis_angle(matrix),
        rotations.rotation_6d_to_axis_angle(rotations.axis_angle_to_rotation_6d(vector)),
    ):
        assert np.linalg.norm(back) <= np.pi + 1e-14
        # At half a turn the axis may point the other way: it is the same rotation.
        if np.linalg.norm(vector) > np.pi - 1e-6 and back @ vector < 0:
            back = -back * (2 * np.pi - np.linalg.norm(back)) / np.linalg.norm(back)
        np.testing.assert_allclose(back, vector, atol=1e-13)


@given(axis_angles())
def test_matrices_become_the_axis_angles_of_scipy(vector: Array) -> None:
    rotation = Rotation.from_rotvec(vector)
    ours = Rotation.from_rotvec(rotations.matrix_to_axis_angle(rotation.as_matrix()))
    assert (ours * rotation.inv()).magnitude() < 1e-13


@pytest.mark.parametrize("axis", np.vstack([np.eye(3), -np.eye(3), np.full((1, 3), 3**-0.5)]))
def test_half_a_turn_about_an_axis(axis: Array) -> None:
    matrix = 2 * np.outer(axis, axis) - np.eye(3)
    vector = rotations.matrix_to_axis_angle(matrix)
    np.testing.assert_allclose(np.abs(vector @ axis), np.pi, atol=1e-14)
    np.testing.assert_allclose(rotations.axis_angle_to_matrix(vector), matrix, atol=1e-14)


def test_more_than_half_a_turn_is_the_shorter_one_the_other_way() -> None:
    vector = np.array([0.0, 0.0, 1.5 * np.pi])
    back = rotations.matrix_to_axis_angle(rotations.axis_angle_to_matrix(vector))
    np.testing.assert_allclose(back, [0, 0, -0.5 * np.pi], atol=1e-14)


def test_six_numbers_are_the_first_two_rows() -> None:
    matrix = random_rotations(1)[0]
    assert rotations.matrix_to_rotation_6d(matrix).tolist() == [*matrix[0], *matrix[1]]
    quarter_turn_about_z = rotations.axis_angle_to_rotation_6d([0, 0, np.pi / 2])
    np.testing.assert_allclose(quarter_turn_about_z, [0, -1, 0, 1, 0, 0], atol=1e-15)


def test_exact_6d_comes_back_unchanged() -> None:
    matrices = random_rotations(200)
    np.testing.assert_allclose(
        rotations.rotation_6d_to_matrix(rotations.matrix_to_rotation_6d(matrices)), matrices, atol=1e-15
    )


@settings(max_examples=200)
@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-10, 10))
def test_predictions_are_projected_to_rotations(
    noise: list[float], scale_0: float, scale_1: float, shear: float
) -> None:
    first, second = np.array(noise[:3]), np.array(noise[3:])
    assume(np.linalg.norm(np.cross(first, second)) > 1e-3)
    matrix = rotations.rotation_6d_to_matrix(np.concatenate([first, second]))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-11)
    assert np.linalg.det(matrix) > 0
    np.testing.assert_allclose(matrix[0], first / np.linalg.norm(first), atol=1e-14)
    assert matrix[1] @ second > 0
    assert abs(matrix[2] @ second) < 1e-10  # the second row lies in the plane of both vectors
    # What the process removes, it may as well not have seen: lengths, and the first row's share in the second.
    same = np.concatenate([scale_0 * first, scale_1 * second + shear * first])
    np.testing.assert_allclose(rotations.rotation_6d_to_matrix(same), matrix, atol=1e-9)


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 2, 3, 2, 4, 6],
        [0.1, 0.2, 0.3, -0.7, -1.4, -2.1],
        [np.nan, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, np.inf, 0],
        [-np.inf, 0, 0, 0, 1, 0],
    ],
)
def test_six_numbers_without_a_rotation_are_refused(numbers: list[float]) -> None:
    fine = [1.0, 0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="name no rotation"):
        rotations.rotation_6d_to_matrix([fine, numbers])


@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (4, 3, 2)])
def test_any_leading_axes_and_float32_are_taken(shape: tuple[int, ...]) -> None:
    vectors = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    matrices = rotations.axis_angle_to_matrix(vectors)
    numbers = rotations.axis_angle_to_rotation_6d(vectors)
    back = rotations.rotation_6d_to_axis_angle(numbers)
    assert (matrices.shape, numbers.shape, back.shape) == ((*shape, 3, 3), (*shape, 6), (*shape, 3))
    assert {array.dtype for array in (matrices, numbers, back)} == {np.dtype(np.float64)}
    for index in np.ndindex(shape):
        np.testing.assert_allclose(matrices[index], Rotation.from_rotvec(vectors[index]).as_matrix(), atol=1e-14)


def test_wrong_shapes_are_refused() -> None:
    for function, shape in (
        (rotations.axis_angle_to_matrix, (4,)),
        (rotations.matrix_to_axis_angle, (3,)),
        (rotations.matrix_to_rotation_6d, (3, 2)),
        (rotations.rotation_6d_to_matrix, (3, 3)),
        (rotations.rotation_6d_to_matrix, ()),
    ):
        with pytest.raises(ValueError, match="expected the shape"):
            function(np.ones(shape))
