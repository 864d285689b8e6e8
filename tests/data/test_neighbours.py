"""The table of neighbours against a comparison of all pairs, its weights, and the batches that carry their chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_policy.data.neighbours import find_neighbours
from drift_policy.data.window_batches import Neighbours, WindowBatches
from drift_policy.errors import ConfigurationError


def walks(lengths: list[int], size: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Observations that change slowly within an episode, and their episodes, which are not in order."""
    rng = np.random.default_rng(seed)
    starts = [rng.uniform(-1, 1, size) + 0.01 * rng.normal(size=(length, size)).cumsum(axis=0) for length in lengths]
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    order = rng.permutation(len(episodes))
    return torch.from_numpy(np.concatenate(starts)[order]).float(), episodes[order]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    size=st.integers(1, 12),
    asked=st.integers(1, 8),
    seed=st.integers(0, 999),
)
def test_table_is_that_of_all_pairs(lengths: list[int], size: int, asked: int, seed: int) -> None:
    observations, episodes = walks(lengths, size, seed)
    count = min(asked, sum(lengths) - max(lengths) + 1)
    neighbours, distances = find_neighbours(observations, episodes, count=count, width=0.1)
    exact = observations.double().numpy()
    pairs = np.sqrt(np.square(exact[:, None] - exact[None]).mean(axis=2))
    pairs[episodes[:, None] == episodes[None]] = np.inf
    nearest = np.sort(pairs, axis=1)[:, : count - 1]
    np.testing.assert_array_equal(neighbours.windows[:, 0].numpy(), np.arange(len(exact)))
    np.testing.assert_allclose(distances[:, 1:].numpy(), nearest, rtol=1e-12)
    found = np.take_along_axis(pairs, neighbours.windows[:, 1:].numpy(), axis=1)
    np.testing.assert_allclose(found, nearest, rtol=1e-12)
    assert all(len(set(row)) == count for row in neighbours.windows.tolist())

    weights = np.exp(-np.square(np.concatenate([np.zeros((len(exact), 1)), nearest], axis=1)) / (2 * 0.1**2))
    np.testing.assert_allclose(
        neighbours.weights.numpy(), weights / weights.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-30
    )
    np.testing.assert_allclose(neighbours.weights.sum(dim=1).numpy(), 1, rtol=1e-6)
    assert neighbours.weights.dtype == torch.float32


def test_many_near_copies_in_the_own_episode_are_no_neighbours() -> None:
    still = torch.zeros(400, 3) + 1e-5 * torch.arange(400).unsqueeze(1)
    observations = torch.cat([still, torch.full((1, 3), 5.0)])
    neighbours, distances = find_neighbours(observations, np.repeat([0, 1], [400, 1]), count=2, width=0.1)
    assert neighbours.windows[:400, 1].eq(400).all() and int(neighbours.windows[400, 1]) == 399
    assert distances[0, 1] == pytest.approx(5.0)
    assert neighbours.weights[0].tolist() == [1.0, 0.0]  # far beyond the width


def test_distances_are_between_entries_not_by_the_gram_matrix() -> None:
    base = 1 + torch.rand(1, 40, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0.0, 4e-4, 2e-4, 3e-4, 1e-4])
    observations = base + offsets.unsqueeze(1)
    neighbours, distances = find_neighbours(observations, np.arange(5), count=3, width=0.1)
    assert neighbours.windows[0].tolist() == [0, 4, 2]
    torch.testing.assert_close(distances[0], torch.tensor([0, 1e-4, 2e-4], dtype=torch.float64), rtol=2e-3, atol=0)


def test_equal_distances_are_in_the_order_of_the_windows_and_every_call_gives_the_same() -> None:
    observations, episodes = torch.zeros(30, 2), np.repeat(np.arange(10), 3)
    neighbours, _ = find_neighbours(observations, episodes, count=4, width=0.1)
    again, _ = find_neighbours(observations, episodes, count=4, width=0.1)
    assert torch.equal(neighbours.windows, again.windows)
    assert neighbours.weights.eq(0.25).all()
    few, _ = find_neighbours(observations[:9], episodes[:9], count=4, width=0.1)
    assert few.windows[[0, 4, 8]].tolist() == [[0, 3, 4, 5], [4, 0, 1, 2], [8, 0, 1, 2]]


def test_too_few_windows_of_other_episodes_are_refused_with_the_largest_number() -> None:
    observations, episodes = torch.rand(10, 2), np.repeat([0, 1], [7, 3])
    find_neighbours(observations, episodes, count=4, width=0.1)
    with pytest.raises(ConfigurationError, match=r"trainer\.neighbours=5 .*only 3: set trainer\.neighbours=4 or less"):
        find_neighbours(observations, episodes, count=5, width=0.1)


def test_batches_hold_the_chunks_of_the_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    windows = WindowBatches(
        {"obs": torch.rand(20, 3, generator=generator)},
        torch.rand(20, 2, generator=generator),
        torch.arange(16).unsqueeze(1) + torch.arange(1, 5),  # window 0 begins at step 1
        n_obs_steps=2,
    )
    plain, nbytes = windows.batch(np.array([5, 0])), windows.nbytes
    assert plain.keys() == {"obs", "action"}
    table = torch.randint(16, (16, 3), generator=generator)
    table[:, 0] = torch.arange(16)
    windows.neighbours = Neighbours(table, torch.rand(16, 3, generator=generator))
    batch = windows.to("cpu").batch(np.array([5, 0]))
    assert windows.nbytes == nbytes + 16 * 3 * (8 + 4)
    assert torch.equal(batch["obs"]["obs"], plain["obs"]["obs"]) and torch.equal(batch["action"], plain["action"])
    assert torch.equal(batch["positives"][:, 0], batch["action"])
    for neighbour in range(3):
        expected = windows.batch(table[[5, 0], neighbour])["action"]
        assert torch.equal(batch["positives"][:, neighbour], expected)
    assert torch.equal(batch["positive_weights"], windows.neighbours.weights[[5, 0]])
    moved = windows.to("meta").batch(torch.zeros(1, dtype=torch.int64, device="meta"))
    assert moved["positives"].is_meta and moved["positive_weights"].is_meta
