"""Mirrored demonstrations: both halves are trained on, held-out episodes and their images are not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from drift_policy.data.symmetry import find_symmetry, with_mirror_images
from drift_policy.errors import ConfigurationError, DataError
from drift_policy.task import load_demonstrations
from drift_policy.training.run import build_policy_and_data
from tests.helpers.point_task import point_demonstrations, point_training

NEGATED = f"{__name__}:negated"


def negated(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: -column for name, column in columns.items()}


def test_images_follow_the_originals_episode_by_episode() -> None:
    buffer = point_demonstrations(episodes=3, length=5)
    doubled = with_mirror_images(buffer, negated)
    assert doubled.episode_ends.tolist() == [5, 10, 15, 20, 25, 30]
    for index in range(3):
        for name, column in buffer.episode(index).items():
            np.testing.assert_array_equal(doubled.episode(index)[name], column)
            np.testing.assert_array_equal(doubled.episode(index + 3)[name], -column)


def test_training_sees_both_and_nothing_of_what_is_held_out(tmp_path: Path) -> None:
    config = point_training(tmp_path, trainer={"val_ratio": 0.25})
    demonstrations = load_demonstrations(config.task, config.data_path, False, print)
    _, plain = build_policy_and_data(config, demonstrations, torch.device("cpu"))
    config.task.symmetry = NEGATED
    _, both = build_policy_and_data(config, demonstrations, torch.device("cpu"))
    assert plain.validation is not None and both.validation is not None
    assert len(both.train) == 2 * len(plain.train) and len(both.validation) == len(plain.validation)
    shown, held_out = set(both.train.episodes.tolist()), set(both.validation.episodes.tolist())
    assert shown == {episode for episode in range(24) if episode % 12 not in held_out}


def test_what_does_not_fit_is_refused_with_a_way_out() -> None:
    buffer = point_demonstrations(episodes=1)

    def unknown(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise KeyError("no mirror image is known of observation")

    with pytest.raises(DataError, match="no mirror image is known of observation. Set it to null"):
        with_mirror_images(buffer, unknown)
    with pytest.raises(DataError, match="must return columns like those it is given"):
        with_mirror_images(buffer, lambda columns: {"action": columns["action"]})
    for change in (lambda column: column[:-1], lambda column: column.astype(np.float64)):
        with pytest.raises(DataError, match="must return columns like those it is given"):
            with_mirror_images(buffer, lambda columns, change=change: {k: change(v) for k, v in columns.items()})

    def damaged(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise ValueError("its own matter")

    with pytest.raises(ValueError, match="its own matter"):
        with_mirror_images(buffer, damaged)

    def in_place(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns["action"][:, 0] *= -1
        return columns

    before = {name: column.copy() for name, column in buffer.data.items()}
    with pytest.raises(DataError, match="writes to the columns that it is given: let it return new ones"):
        with_mirror_images(buffer, in_place)
    for name, column in buffer.data.items():
        np.testing.assert_array_equal(column, before[name])
        assert column.flags.writeable  # only what the symmetry sees is locked
    assert find_symmetry(NEGATED) is negated
    for wrong in ("negated", "os:path.join", "no_such_module:mirror", f"{__name__}:missing", ""):
        with pytest.raises(ConfigurationError, match=r"task\.symmetry"):
            find_symmetry(wrong)
