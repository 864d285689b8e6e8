"""The replay buffer: episode access, validation and the content hash."""

import numpy as np
import pytest

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError


def make_buffer() -> ReplayBuffer:
    steps = np.arange(9)
    data = {"action": np.stack([steps, -steps], axis=1).astype(np.float32), "flag": steps % 2 == 0}
    return ReplayBuffer(data, np.array([4, 6, 9], np.int32))


def test_sizes_and_episode_views() -> None:
    buffer = make_buffer()
    assert (buffer.n_episodes, buffer.n_steps, buffer.nbytes) == (3, 9, 9 * 2 * 4 + 9)
    assert buffer.episode_ends.dtype == np.int64
    assert buffer.episode_lengths.tolist() == [4, 2, 3]
    episode = buffer.episode(1)
    assert episode["action"][:, 0].tolist() == [4, 5]
    assert np.shares_memory(episode["action"], buffer.data["action"])
    with pytest.raises(IndexError, match="0 to 2"):
        buffer.episode(3)


def test_summary_is_one_line_with_all_figures() -> None:
    summary = make_buffer().summary()
    assert summary == "3 episodes, 9 steps, 0.0 MB: action [2] float32, flag [] bool"


@pytest.mark.parametrize("selection", [[True, False, True], [0, 2], np.array([0, 2])])
def test_select_episodes(selection: object) -> None:
    selected = make_buffer().select_episodes(selection)  # type: ignore[arg-type]
    assert selected.episode_ends.tolist() == [4, 7]
    assert selected.data["action"][:, 0].tolist() == [0, 1, 2, 3, 6, 7, 8]


@pytest.mark.parametrize("selection", [[], [False, False, False], [True, False]])
def test_select_episodes_refuses_empty_or_misfit_selections(selection: list[bool]) -> None:
    with pytest.raises(DataError, match="mask|selected"):
        make_buffer().select_episodes(selection)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([], "empty|integers"),
        ([4, 4, 9], "episode 1 has 0 steps"),
        ([4, 2, 9], "episode 1 has -2 steps"),
        ([0, 9], "episode 0 has 0 steps"),
        ([4, 8], "9 steps, but episode_ends end at step 8"),
        ([4, 10], "9 steps, but episode_ends end at step 10"),
        ([[4, 9]], "shape"),
        ([4.0, 9.0], "float64"),
    ],
)
def test_wrong_episode_ends_are_refused(ends: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ReplayBuffer({"action": np.zeros((9, 2))}, np.array(ends))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "at least one column"),
        ({"action": np.zeros((9, 2)), "state": np.zeros((8, 2))}, "'state' has 8 steps"),
        ({"action": np.zeros(())}, "'action' has 0 steps"),
        ({"action": np.array(["a"] * 9)}, "'action' must hold numbers"),
        ({"action": np.array([None] * 9)}, "'action' must hold numbers"),
    ],
)
def test_wrong_columns_are_refused(data: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ReplayBuffer(data, np.array([4, 9]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named_by_column_step_and_episode(value: float) -> None:
    state = np.zeros((200_000, 40), np.float32)  # several blocks long
    state[150_000, 7] = state[199_999, 0] = value
    with pytest.raises(DataError, match=r"'state' .* step 150000 \(episode 2\)"):
        ReplayBuffer({"state": state}, np.array([10, 150_000, 200_000]))


def test_content_hash_depends_on_content_only() -> None:
    reference = make_buffer()
    data = reference.data
    big_endian = ReplayBuffer(
        {"flag": data["flag"], "action": np.asfortranarray(data["action"].astype(">f4"))}, reference.episode_ends
    )
    assert big_endian.content_hash() == reference.content_hash()


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape", "episode_ends"])
def test_content_hash_notices_every_change(change: str) -> None:
    reference = make_buffer()
    data, ends = {name: column.copy() for name, column in reference.data.items()}, reference.episode_ends.copy()
    if change == "value":
        data["action"][8, 1] += 1e-6
    elif change == "name":
        data["actions"] = data.pop("action")
    elif change == "dtype":
        data["flag"] = data["flag"].view(np.uint8)
    elif change == "shape":
        data["action"] = data["action"].reshape(9, 1, 2)
    else:
        ends[0] = 3
    assert ReplayBuffer(data, ends).content_hash() != reference.content_hash()
