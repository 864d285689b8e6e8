"""Absolute actions between the seven numbers that robosuite executes and the ten that a policy learns."""

import numpy as np
import pytest

from drift_policy.data.readers.robomimic_actions import convert_actions, unconvert_actions
from drift_policy.errors import ConfigurationError, DataError


def test_actions_keep_their_dtype_and_leading_axes() -> None:
    actions = np.random.default_rng(0).normal(size=(3, 5, 14)).astype(np.float32)
    converted = convert_actions(actions)
    executed = unconvert_actions(converted)
    assert (converted.shape, executed.shape) == ((3, 5, 20), (3, 5, 14))
    assert converted.dtype == executed.dtype == np.float32
    np.testing.assert_allclose(executed, actions, atol=1e-5)


def test_predicted_rotations_need_not_be_exact() -> None:
    action = np.array([[0.1, 0.2, 0.3, 2, 0, 0, 0.5, 3, 0, -1]])
    np.testing.assert_allclose(unconvert_actions(action), [[0.1, 0.2, 0.3, 0, 0, 0, -1]], atol=1e-15)
    with pytest.raises(ValueError, match="name no rotation"):
        unconvert_actions(np.zeros((1, 10)))


def test_actions_of_another_size_are_refused() -> None:
    for size in (0, 7, 14, 9):
        with pytest.raises(ConfigurationError, match=f"10 or 20, but this one predicts {size}"):
            unconvert_actions(np.zeros((2, size)))
    for size in (0, 6, 10):
        with pytest.raises(DataError, match=f"7 or 14, but these have {size}"):
            convert_actions(np.zeros((2, size)))
