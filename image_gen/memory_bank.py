"""Queues of real samples: positives by class and unconditional negatives (appendix A.8 of arXiv 2602.04770).

Everything lies on one device and every operation is vectorised. Which samples are drawn depends on the given generator
and on how many samples each queue holds, never on the device.

Shape letters: K classes, Q samples a queue holds, n new samples, B labels, P draws for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drift_policy.errors import require
from image_gen.levels import from_levels, to_levels

# Storage type -> bytes of a number. "uint8" holds images in [-1, 1] that were read from bytes, exactly.
STORAGE_TYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
}


@dataclass(frozen=True)
class Draws:
    """Samples that were drawn, by their places: only the rows that are asked for are ever copied.

    Valid until the next push.
    """

    queues: SampleQueues
    keys: Tensor  # queue of each row, [B]
    slots: Tensor  # places in it, [B, P]

    def samples(self, rows: slice = slice(None)) -> Tensor:
        """Return the samples of some rows, [rows, P, ...] in float32 on the device of the queues."""
        return self.queues.read(self.keys[rows], self.slots[rows])


class SampleQueues(nn.Module):
    """Rings of samples, one for each key: new samples replace the oldest.

    The state is in buffers, so `state_dict` and `load_state_dict` give an exact resume.

    Args:
        num_queues: K.
        capacity: Q, samples that a queue holds.
        sample_shape: of one sample.
        storage: type that samples are kept in, of `STORAGE_TYPES`.
        device: where they lie.
    """

    samples: Tensor
    counts: Tensor

    def __init__(
        self,
        num_queues: int,
        capacity: int,
        sample_shape: tuple[int, ...],
        storage: str = "float32",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require(num_queues >= 1, f"the number of queues must be at least 1, but is {num_queues}.")
        require(capacity >= 1, f"the capacity of a queue must be at least 1, but is {capacity}.")
        require(storage in STORAGE_TYPES, f"storage must be one of {', '.join(STORAGE_TYPES)}, but is {storage!r}.")
        self.num_queues, self.capacity = num_queues, capacity
        shape = (num_queues, capacity, *sample_shape)
        self.register_buffer("samples", torch.zeros(shape, dtype=STORAGE_TYPES[storage], device=device))
        # How many samples each queue has received, ever: the next slot and the fill follow from it. [K]
        self.register_buffer("counts", torch.zeros(num_queues, dtype=torch.long, device=device))

    @torch.no_grad()
    def push(self, samples: Tensor, keys: Tensor) -> None:
        """Add samples in their order.

        Args:
            samples: [n, ...].
            keys: which queue each goes to, integers [n].

        Raises:
            ValueError: another shape of samples, or other keys than there are queues.
        """
        if samples.shape[1:] != self.samples.shape[2:] or keys.shape != (len(samples),):
            raise ValueError(
                f"samples must be [n, {', '.join(map(str, self.samples.shape[2:]))}] with keys [n], but have shapes "
                f"{list(samples.shape)} and {list(keys.shape)}."
            )
        if len(samples) == 0:
            return
        keys = keys.to(self.counts.device)
        if int(keys.min()) < 0 or int(keys.max()) >= self.num_queues:
            raise ValueError(f"keys must be from 0 to {self.num_queues - 1}, but are up to {int(keys.max())}.")
        rank = _rank_within_key(keys)  # 0, 1, ... among the new samples of the same queue
        new = torch.bincount(keys, minlength=self.num_queues)
        # Of more new samples than fit, the last ones stay: two writes to one slot would be in no order.
        kept = rank >= new[keys] - self.capacity
        slots = (self.counts[keys] + rank) % self.capacity
        self.samples[keys[kept], slots[kept]] = self._to_storage(samples.to(self.samples.device)[kept])
        self.counts += new

    @torch.no_grad()
    def draw(self, keys: Tensor, number: int, generator: torch.Generator) -> Draws:
        """Draw samples of some queues: without replacement, or with it from a queue that holds fewer than `number`.

        Args:
            keys: queues to draw from, integers [B].
            number: P, draws from each.
            generator: on the CPU.

        Raises:
            ValueError: one of the queues is empty.
        """
        keys = keys.to(self.counts.device)
        stored = self.counts[keys].clamp(max=self.capacity)
        if int(stored.min()) == 0:
            empty = sorted({int(key) for key in keys[stored == 0]})
            raise ValueError(f"nothing was pushed yet to the queue(s) {', '.join(map(str, empty[:10]))}.")
        # By age, not by slot: a queue that was filled again draws what one that never stopped does.
        ages = draw_slots(stored.cpu(), self.capacity, number, generator).to(keys.device)
        slots = (self.counts[keys].unsqueeze(1) - 1 - ages) % self.capacity
        return Draws(self, keys, slots)

    def read(self, keys: Tensor, slots: Tensor) -> Tensor:
        """Return the samples in some places, [B] and [B, P] -> [B, P, ...] in float32."""
        return self._from_storage(self.samples[keys.unsqueeze(1), slots])

    def _to_storage(self, samples: Tensor) -> Tensor:
        if self.samples.dtype == torch.uint8:
            return to_levels(samples)
        return samples.to(self.samples.dtype)

    def _from_storage(self, samples: Tensor) -> Tensor:
        return from_levels(samples) if samples.dtype == torch.uint8 else samples.float()


class MemoryBank(nn.Module):
    """The newest real samples: a queue of positives for each class, and one of unconditional negatives.

    Args:
        num_classes: K.
        sample_shape: of an image or latent, (C, H, W).
        class_capacity: samples of each class; the paper's is 128.
        unconditional_capacity: samples of any class; the paper's is 1000.
        storage: type that samples are kept in, of `STORAGE_TYPES`; "uint8" clips what is outside [-1, 1].
        device: where they lie; None is PyTorch's default.
    """

    def __init__(
        self,
        num_classes: int,
        sample_shape: tuple[int, ...],
        class_capacity: int = 128,
        unconditional_capacity: int = 1000,
        storage: str = "float32",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.by_class = SampleQueues(num_classes, class_capacity, sample_shape, storage, device)
        self.any_class = SampleQueues(1, unconditional_capacity, sample_shape, storage, device)

    @property
    def nbytes(self) -> int:
        """Memory of the queues."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def push(self, samples: Tensor, class_ids: Tensor) -> None:
        """Add real samples [n, C, H, W] with their classes [n] to both kinds of queues."""
        self.by_class.push(samples, class_ids)
        self.any_class.push(samples, torch.zeros_like(class_ids))

    def positives(self, class_ids: Tensor, number: int, generator: torch.Generator) -> Draws:
        """Draw `number` real samples for each of the given classes, [B]; see `SampleQueues.draw`."""
        return self.by_class.draw(class_ids, number, generator)

    def unconditional(self, batch: int, number: int, generator: torch.Generator) -> Draws:
        """Draw `number` real samples of any class for each of `batch` labels."""
        return self.any_class.draw(torch.zeros(batch, dtype=torch.long), number, generator)


def draw_slots(stored: Tensor, capacity: int, number: int, generator: torch.Generator) -> Tensor:
    """Draw `number` of the first `stored` slots of each row, without replacement where there are enough.

    Args:
        stored: slots in use, at least 1, [B].
        capacity: the largest possible value of `stored`.
        number: draws of each row.
        generator: on the CPU, as `stored`.

    Returns:
        integers [B, number].
    """
    stored = stored.unsqueeze(1)
    replaced = (torch.rand(len(stored), number, generator=generator) * stored).long().clamp(max=stored - 1)
    # A random order of the slots in use comes first when unused ones are sorted behind.
    order = torch.rand(len(stored), capacity, generator=generator)
    order = order.masked_fill(torch.arange(capacity) >= stored, 2.0).argsort(dim=1)
    if number > capacity:
        return replaced
    return torch.where(stored >= number, order[:, :number], replaced)


def _rank_within_key(keys: Tensor) -> Tensor:
    """Return how many earlier entries have the same key, [n]."""
    order = torch.argsort(keys, stable=True)
    ordered = keys[order]
    positions = torch.arange(len(keys), device=keys.device)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(is_first, positions, 0).cummax(dim=0).values
    rank = torch.empty_like(positions)
    rank[order] = positions - first
    return rank
