"""The batches of a training: the same for any number of processes."""

import pytest
import torch
from torch import Tensor

from drift_policy.errors import DataError
from drift_policy.training.parallel import Processes
from image_gen.tokenizers.base import Randomness, Tokenizer
from image_gen.training import samples as samples_module
from image_gen.training.samples import RealSamples, SampleStream
from image_gen.training.schedule import LATENTS, row_generator

SHAPE = (1, 4, 4)


class Noisy(Tokenizer):
    """Latents are images with noise."""

    def __init__(self) -> None:
        super().__init__(1, 1, factor=1)

    def _encode(self, images: Tensor, generator: Randomness) -> Tensor:
        assert isinstance(generator, list)
        return images + torch.stack([torch.randn(SHAPE, generator=each) for each in generator])

    def _decode(self, latents: Tensor) -> Tensor:
        return latents


class Numbers:
    """Images that are all their own number."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full(SHAPE, float(index)), index

    def set_epoch(self, epoch: int) -> None:
        """Nothing is random."""


def batch(rank: int, size: int, step: int) -> tuple[Tensor, Tensor]:
    processes = Processes(torch.device("cpu"))
    processes.rank, processes.size = rank, size
    samples = RealSamples(Numbers(), [str(n) for n in range(12)], SHAPE, "sd_vae", None, Noisy(), {})
    return SampleStream(samples, 6, 0, processes).own(step)


def test_latents_that_are_drawn_do_not_depend_on_the_number_of_processes() -> None:
    images, numbers = batch(0, 1, step=3)
    for size in (2, 3):
        parts = [batch(rank, size, step=3) for rank in range(size)]
        assert torch.equal(torch.cat([part[1] for part in parts]), numbers)
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
    noise = images - numbers.reshape(-1, 1, 1, 1)
    assert len({float(each) for each in noise[:, 0, 0, 0]}) == 6


def test_large_batches_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, numbers = batch(0, 1, step=3)
    sizes: list[int] = []
    encode = Noisy._encode

    def counted(self: Noisy, images: Tensor, generator: Randomness) -> Tensor:
        sizes.append(len(images))
        return encode(self, images, generator)

    monkeypatch.setattr(Noisy, "_encode", counted)
    monkeypatch.setattr(samples_module, "_ENCODED_AT_ONCE", 4)
    images, same = batch(0, 1, step=3)
    assert sizes == [4, 2]
    assert torch.equal(images, whole) and torch.equal(same, numbers)


def test_a_stream_gives_the_step_that_is_asked_for_in_any_order() -> None:
    samples = RealSamples(Numbers(), [str(n) for n in range(12)], SHAPE, "pixels", None, None, {})
    stream = SampleStream(samples, 4, 0, Processes(torch.device("cpu")))
    first = {step: stream.own(step)[1].tolist() for step in range(6)}
    for step in (3, 3, 4, 1, 5):
        assert stream.own(step)[1].tolist() == first[step]
    assert sorted(first[0] + first[1] + first[2]) == sorted(first[3] + first[4] + first[5]) == list(range(12))


class Epochs(Numbers):
    """Numbers that keep the epoch of what is read."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_an_epoch_is_as_many_steps_as_have_samples_of_their_own() -> None:
    samples = RealSamples(Epochs(), [str(n) for n in range(12)], SHAPE, "pixels", None, None, {})
    stream = SampleStream(samples, 5, 0, Processes(torch.device("cpu")))  # two steps; two of twelve are left out
    for step in range(6):
        stream.own(step)
    assert samples.dataset.epochs == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]  # of Epochs


class Damaged(Numbers):
    """One of the images cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 5:
            raise DataError("image 5 cannot be decoded")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_whoever_reads_it(workers: int) -> None:
    samples = RealSamples(Damaged(), [str(n) for n in range(12)], SHAPE, "pixels", None, None, {})
    stream = SampleStream(samples, 12, 0, Processes(torch.device("cpu")), workers)
    with pytest.raises(DataError, match=r"^image 5 cannot be decoded$"):
        stream.own(0)
    stream.close()


def test_latents_and_the_noise_of_a_generator_are_independent() -> None:
    drawn = [torch.rand(1, generator=row_generator(0, 0, 0, "cpu", *purpose)) for purpose in ((), (LATENTS,))]
    assert not torch.equal(*drawn)
