import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from drift_policy.errors import ConfigurationError
from image_gen.memory_bank import MemoryBank, SampleQueues, draw_slots


def test_queues_are_made_where_they_lie() -> None:
    assert all(buffer.is_meta for buffer in MemoryBank(2, (1,), 3, 4, device="meta").buffers())


def test_sizes_are_the_papers_unless_given() -> None:
    bank = MemoryBank(2, (1,))
    assert (bank.by_class.samples.shape, bank.any_class.samples.shape) == ((2, 128, 1), (1, 1000, 1))


def numbered(first: int, count: int) -> torch.Tensor:
    """Samples [count, 1] that hold their own number."""
    return torch.arange(first, first + count, dtype=torch.float32).unsqueeze(1)


@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6),
    capacity=st.integers(1, 5),
)
def test_a_queue_holds_the_newest_samples_of_its_class(batches: list[list[int]], capacity: int) -> None:
    queues = SampleQueues(4, capacity, (1,))
    newest: dict[int, list[float]] = {key: [] for key in range(4)}
    number = 0
    for keys in batches:
        queues.push(numbered(number, len(keys)), torch.tensor(keys, dtype=torch.long))
        for key in keys:
            newest[key] = [*newest[key], float(number)][-capacity:]
            number += 1
    for key, expected in newest.items():
        stored = queues.samples[key, : min(int(queues.counts[key]), capacity), 0].tolist()
        assert sorted(stored) == expected


@settings(max_examples=40)
@given(
    stored=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    number=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_draws_are_without_replacement_where_enough_is_stored(stored: list[int], number: int, seed: int) -> None:
    slots = draw_slots(torch.tensor(stored), 9, number, torch.Generator().manual_seed(seed))
    assert slots.shape == (len(stored), number)
    for row, limit in zip(slots.tolist(), stored, strict=True):
        assert all(0 <= slot < limit for slot in row)
        if number <= limit:
            assert len(set(row)) == number


@pytest.mark.parametrize(("stored", "number"), [(5, 3), (3, 5)])
def test_every_stored_sample_is_drawn_equally_often(stored: int, number: int) -> None:
    draws = torch.Generator().manual_seed(0)
    slots = draw_slots(torch.full((4000,), stored), 8, number, draws)
    shares = torch.bincount(slots.flatten(), minlength=stored) / slots.numel()
    assert torch.allclose(shares, torch.full((stored,), 1 / stored), atol=0.02)


def test_positives_are_of_the_class_and_unconditional_ones_of_any() -> None:
    bank = MemoryBank(3, (1, 1, 1), class_capacity=4, unconditional_capacity=6)
    class_ids = torch.tensor([0, 1, 2] * 4)
    bank.push(class_ids.float().reshape(-1, 1, 1, 1), class_ids)
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 2])
    positives = bank.positives(labels, 4, draws).samples()
    assert positives.shape == (3, 4, 1, 1, 1)
    assert torch.equal(positives.flatten(1), labels.float().unsqueeze(1).expand(3, 4))
    assert set(bank.unconditional(50, 6, draws).samples().flatten().tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize("pushed", [2, 4, 7])
def test_a_queue_that_is_not_full_draws_what_it_holds_and_nothing_else(pushed: int) -> None:
    queues = SampleQueues(1, 5, (1,))
    queues.push(numbered(1, pushed), torch.zeros(pushed, dtype=torch.long))
    held = [float(number) for number in range(1, pushed + 1)][-5:]
    drawn = queues.draw(torch.zeros(20, dtype=torch.long), len(held), torch.Generator().manual_seed(0)).samples()
    assert drawn.flatten(1).sort(dim=1).values.tolist() == [held] * 20


def test_state_is_restored_and_goes_on_alike() -> None:
    bank, other = (MemoryBank(2, (1,), 3, 4) for _ in range(2))
    bank.push(numbered(0, 5), torch.tensor([0, 1, 0, 0, 0]))
    other.load_state_dict(bank.state_dict())
    for each in (bank, other):
        each.push(numbered(5, 2), torch.tensor([1, 0]))
    assert all(torch.equal(a, b) for a, b in zip(bank.buffers(), other.buffers(), strict=True))
    one = bank.positives(torch.tensor([0, 1]), 2, torch.Generator().manual_seed(1))
    two = other.positives(torch.tensor([0, 1]), 2, torch.Generator().manual_seed(1))
    assert torch.equal(one.samples(), two.samples())


@pytest.mark.parametrize("number", [2, 6])
def test_queues_that_were_filled_again_draw_what_old_ones_do(number: int) -> None:
    old, filled = (SampleQueues(1, 4, (1,)) for _ in range(2))
    old.push(numbered(0, 11), torch.zeros(11, dtype=torch.long))
    filled.push(numbered(5, 6), torch.zeros(6, dtype=torch.long))
    keys = torch.zeros(30, dtype=torch.long)
    draws = [queues.draw(keys, number, torch.Generator().manual_seed(0)) for queues in (old, filled)]
    assert torch.equal(*(drawn.samples() for drawn in draws))


def test_only_the_rows_that_are_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = SampleQueues(3, 4, (2,), "uint8")
    keys = torch.arange(3).repeat(4)
    queues.push(torch.rand(12, 2), keys)
    drawn = queues.draw(keys, 3, torch.Generator().manual_seed(0))
    whole = drawn.samples()
    sizes: list[int] = []
    read = SampleQueues.read

    def remember(own: SampleQueues, keys: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        sizes.append(len(slots))
        return read(own, keys, slots)

    monkeypatch.setattr(SampleQueues, "read", remember)
    for rows in (slice(0, 5), slice(5, 12)):
        assert torch.equal(drawn.samples(rows), whole[rows])
    assert sizes == [5, 7]


def test_bytes_keep_images_that_were_bytes_exactly() -> None:
    images = torch.arange(256, dtype=torch.float32).reshape(-1, 1) / 127.5 - 1
    queues = SampleQueues(1, 256, (1,), "uint8")
    queues.push(images, torch.zeros(256, dtype=torch.long))
    drawn = queues.draw(torch.zeros(1, dtype=torch.long), 256, torch.Generator().manual_seed(0)).samples()
    assert torch.equal(drawn.flatten().sort().values, images.flatten())
    assert queues.samples.element_size() == 1


def test_wrong_input_is_refused() -> None:
    queues = SampleQueues(2, 3, (1,))
    with pytest.raises(ValueError, match=r"nothing was pushed yet to the queue\(s\) 1"):
        queues.push(numbered(0, 1), torch.tensor([0]))
        queues.draw(torch.tensor([0, 1]), 1, torch.Generator())
    with pytest.raises(ValueError, match="keys must be from 0 to 1"):
        queues.push(numbered(0, 1), torch.tensor([2]))
    with pytest.raises(ValueError, match="have shapes"):
        queues.push(torch.zeros(2, 3), torch.tensor([0, 0]))
    with pytest.raises(ConfigurationError, match="storage must be one of"):
        SampleQueues(2, 3, (1,), "int4")
    with pytest.raises(ConfigurationError, match="capacity"):
        SampleQueues(2, 0, (1,))
