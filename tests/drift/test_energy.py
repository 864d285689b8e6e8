"""The energy kernel: a field that is anti-symmetric and that single positives estimate unbiased."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drift_policy.drift import energy_loss


def field(gen: Tensor, pos: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minus the gradient of the loss for every sample, in units of the mean over samples: [G, S]."""
    x = gen.clone().requires_grad_()
    loss, _ = energy_loss(x[None], pos[None], weight_pos=None if weights is None else weights[None])
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return -gradient * len(gen) * gen.shape[1] ** 0.5


def random(number: int, size: int, seed: int) -> Tensor:
    return torch.randn(number, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(samples=st.integers(2, 6), positives=st.integers(1, 5), size=st.integers(1, 7), seed=st.integers(0, 999))
def test_gradient_is_the_drifting_field(samples: int, positives: int, size: int, seed: int) -> None:
    x, y = random(samples, size, seed), random(positives, size, seed + 1)
    to_positives = (y[None] - x[:, None]) / (y[None] - x[:, None]).norm(dim=2, keepdim=True)
    difference = x[None] - x[:, None]
    norm = difference.norm(dim=2, keepdim=True)
    to_samples = torch.where(norm > 0, difference / norm, 0.0)
    expected = to_positives.mean(dim=1) - to_samples.sum(dim=1) / (samples - 1)
    torch.testing.assert_close(field(x, y), expected, rtol=1e-8, atol=1e-10)


def test_one_positive_at_a_time_gives_the_field_of_all_of_them_on_average() -> None:
    x, y = random(5, 6, 0), random(9, 6, 1)
    single = torch.stack([field(x, positive[None]) for positive in y]).mean(dim=0)
    torch.testing.assert_close(single, field(x, y))


@given(repeats=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), seed=st.integers(0, 999))
def test_weights_are_repeated_positives(repeats: list[int], seed: int) -> None:
    x, y = random(4, 3, seed), random(len(repeats), 3, seed + 1)
    counts = torch.tensor(repeats)
    repeated = field(x, y.repeat_interleave(counts, dim=0))
    torch.testing.assert_close(field(x, y, counts.double()), repeated)
    torch.testing.assert_close(field(x, y, counts.double() / sum(repeats)), repeated)


def test_weights_of_one_do_not_change_a_bit() -> None:
    x, y = random(4, 3, 0)[None].float(), random(5, 3, 1)[None].float()
    assert torch.equal(energy_loss(x, y)[0], energy_loss(x, y, weight_pos=torch.ones(1, 5))[0])


def test_weights_of_zero_attract_nothing() -> None:
    x = random(4, 3, 0)
    pushed = field(x, random(5, 3, 1), torch.zeros(5))
    torch.testing.assert_close(pushed, field(x, random(2, 3, 2), torch.zeros(2)))
    torch.testing.assert_close(pushed.sum(dim=0), torch.zeros(3, dtype=torch.float64))  # repulsion alone


def test_field_vanishes_on_average_where_samples_and_positives_have_one_distribution() -> None:
    everything = random(400, 3, 2)
    mean = field(everything[:200], everything[200:]).norm(dim=1).mean()
    assert mean < 0.15  # of unit vectors; the sampling error of 200 samples is about 0.1
    assert field(everything[:200], everything[200:] + 1.0).norm(dim=1).mean() > 0.5


def test_the_true_distribution_has_the_lowest_value() -> None:
    def value(gen: Tensor) -> float:
        return float(energy_loss(gen.reshape(1, -1, 1), pos.reshape(1, -1, 1))[0])

    pos = random(2000, 1, 3).sign()
    both = random(2000, 1, 4).sign()
    assert value(both) < value(torch.ones_like(both) + 1e-3 * both) - 0.1
    assert value(both) < value(1e-3 * both) - 0.1  # the mean of both modes


def test_coinciding_samples_have_a_finite_gradient() -> None:
    assert torch.isfinite(field(torch.zeros(4, 3), torch.zeros(1, 3))).all()


def test_value_does_not_depend_on_the_size_of_constant_samples() -> None:
    values = [float(energy_loss(torch.zeros(1, 2, size), torch.ones(1, 1, size))[0]) for size in (1, 50)]
    assert values == pytest.approx([1.0, 1.0])


def test_half_precision_is_computed_in_single() -> None:
    loss, info = energy_loss(torch.randn(2, 3, 4, dtype=torch.bfloat16), torch.randn(2, 1, 4, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32 and info.attraction.ndim == 0


@pytest.mark.parametrize("weights", [torch.ones(2, 2), -torch.ones(2, 1), torch.full((2, 1), torch.inf)])
def test_wrong_weights_are_named(weights: Tensor) -> None:
    with pytest.raises(ValueError, match="weight_pos must"):
        energy_loss(torch.zeros(2, 2, 3), torch.zeros(2, 1, 3), weight_pos=weights)


@pytest.mark.parametrize(
    ("gen", "pos", "message"),
    [
        (torch.zeros(2, 1, 3), torch.zeros(2, 1, 3), "at least two"),
        (torch.zeros(2, 3), torch.zeros(2, 1, 3), "gen must have shape"),
        (torch.zeros(2, 2, 3), torch.zeros(2, 1, 4), "pos must have shape"),
        (torch.full((1, 2, 1), torch.nan), torch.zeros(1, 1, 1), "gen"),
    ],
)
def test_wrong_input_is_named(gen: Tensor, pos: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy_loss(gen, pos)
