"""Algorithm 2: an independent loop version, and the properties the method rests on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from drift_policy.drift import drift_field

Array = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 9)
TEMPERATURES = st.sampled_from([0.05, 0.2, 1.0, 5.0])
quick = settings(max_examples=30, derandomize=True)


def draw_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_field(x: Array, y_pos: Array, y_neg: Array, temperature: float, mask_self: bool) -> Array:
    """Algorithm 2 as printed, entry by entry."""
    targets = np.concatenate([y_pos, y_neg])
    num_pos = len(y_pos)
    kernel = np.empty((len(x), len(targets)))
    for i, sample in enumerate(x):
        for j, target in enumerate(targets):
            distance = np.sqrt(np.sum((sample - target) ** 2))
            kernel[i, j] = -(distance + 1e6 * (mask_self and j == num_pos + i)) / temperature
    field = np.zeros_like(x)
    affinity = np.empty_like(kernel)
    for i in range(len(x)):
        for j in range(len(targets)):
            with np.errstate(over="ignore"):  # an infinite sum is an affinity of zero
                row = 1 / np.sum(np.exp(kernel[i] - kernel[i, j]))
                column = 1 / np.sum(np.exp(kernel[:, j] - kernel[i, j]))
            affinity[i, j] = np.sqrt(row * column)
    for i in range(len(x)):
        mass_pos, mass_neg = affinity[i, :num_pos].sum(), affinity[i, num_pos:].sum()
        for j, target in enumerate(targets):
            field[i] += target * affinity[i, j] * (mass_neg if j < num_pos else -mass_pos)
    return field


@quick
@given(SEEDS, SIZES, SIZES, SIZES, st.integers(1, 4), TEMPERATURES, st.booleans())
def test_equals_algorithm_2(
    seed: int, num: int, num_pos: int, num_neg: int, size: int, temperature: float, mask_self: bool
) -> None:
    x, y_pos = draw_tensor(seed, num, size), draw_tensor(seed + 1, num_pos, size)
    y_neg = x if mask_self else draw_tensor(seed + 2, num_neg, size)
    with np.errstate(over="ignore"):
        expected = naive_field(
            x.double().numpy(), y_pos.double().numpy(), y_neg.double().numpy(), temperature, mask_self
        )
    actual = drift_field(x, y_pos, y_neg, temperature, mask_self=mask_self)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=2e-5)


def test_self_mask_covers_samples_at_the_front_of_the_negatives() -> None:
    x, y_pos, extra = draw_tensor(0, 4, 3), draw_tensor(1, 5, 3), draw_tensor(2, 3, 3)
    y_neg = torch.cat([x, extra])
    expected = naive_field(x.double().numpy(), y_pos.double().numpy(), y_neg.double().numpy(), 1.0, True)
    np.testing.assert_allclose(drift_field(x, y_pos, y_neg, 1.0).numpy(), expected, rtol=1e-4, atol=1e-5)


@quick
@given(SEEDS, SIZES, SIZES, SIZES, TEMPERATURES)
def test_anti_symmetric(seed: int, num: int, num_pos: int, num_neg: int, temperature: float) -> None:
    x, y_pos, y_neg = (draw_tensor(seed + k, count, 3) for k, count in enumerate((num, num_pos, num_neg)))
    forward = drift_field(x, y_pos, y_neg, temperature, mask_self=False)
    backward = drift_field(x, y_neg, y_pos, temperature, mask_self=False)
    assert forward.abs().max() > 0
    torch.testing.assert_close(forward, -backward, rtol=1e-4, atol=1e-5)


@quick
@given(SEEDS, SIZES, SIZES, TEMPERATURES)
def test_vanishes_where_the_sets_are_equal(seed: int, num: int, num_targets: int, temperature: float) -> None:
    x, y = draw_tensor(seed, num, 3), draw_tensor(seed + 1, num_targets, 3)
    shuffled = y[torch.randperm(num_targets, generator=torch.Generator().manual_seed(seed))]
    field = drift_field(x, y, shuffled, temperature, mask_self=False)
    torch.testing.assert_close(field, torch.zeros_like(x), rtol=0, atol=1e-5)


@quick
@given(SEEDS, SIZES, SIZES, TEMPERATURES)
def test_equivariant_in_samples_and_invariant_in_targets(
    seed: int, num: int, num_targets: int, temperature: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, y_pos, y_neg = (torch.randn(count, 3, generator=rng) for count in (num, num_targets, num_targets + 1))
    order, order_pos, order_neg = (torch.randperm(len(points), generator=rng) for points in (x, y_pos, y_neg))
    field = drift_field(x, y_pos, y_neg, temperature, mask_self=False)
    permuted = drift_field(x[order], y_pos[order_pos], y_neg[order_neg], temperature, mask_self=False)
    torch.testing.assert_close(permuted, field[order], rtol=1e-4, atol=1e-5)
    masked = drift_field(x, y_pos, x, temperature)
    torch.testing.assert_close(drift_field(x[order], y_pos, x[order], temperature), masked[order], rtol=1e-4, atol=1e-5)


@quick
@given(SEEDS, SIZES, SIZES, TEMPERATURES, st.floats(-100, 100, width=32))
def test_does_not_depend_on_the_origin(seed: int, num: int, num_pos: int, temperature: float, offset: float) -> None:
    # Float64, so that adding the offset does not round the inputs themselves.
    x, y_pos = draw_tensor(seed, num, 3).double(), draw_tensor(seed + 1, num_pos, 3).double()
    field = drift_field(x, y_pos, x, temperature)
    moved = drift_field(x + offset, y_pos + offset, x + offset, temperature)
    assert field.dtype == torch.float64
    torch.testing.assert_close(moved, field, rtol=1e-8, atol=1e-9)


def test_far_origin_keeps_float32_exact() -> None:
    x, y_pos = draw_tensor(0, 6, 3).mul(8).round() / 8, draw_tensor(1, 7, 3).mul(8).round() / 8
    field = drift_field(x, y_pos, x, 0.5)
    torch.testing.assert_close(drift_field(x + 4096, y_pos + 4096, x + 4096, 0.5), field, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("mask_self", [True, False])
def test_finite_for_collapsed_tiny_and_huge_samples(factor: float, mask_self: bool) -> None:
    x, y_pos = draw_tensor(0, 6, 3) * factor, draw_tensor(1, 7, 3) * factor
    assert drift_field(x, y_pos, x, 0.05, mask_self=mask_self).isfinite().all()


@pytest.mark.parametrize("gap", [1e3, 1e10, 1e30])
def test_finite_for_far_apart_sets(gap: float) -> None:
    x, y_pos = draw_tensor(0, 6, 3), draw_tensor(1, 7, 3) + gap
    assert drift_field(x, y_pos, x, 0.05).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, y_pos = draw_tensor(0, 6, 3).to(dtype), draw_tensor(1, 7, 3).to(dtype)
    field = drift_field(x, y_pos, x, 0.2)
    assert field.dtype == dtype
    assert torch.equal(field, drift_field(x.float(), y_pos.float(), x.float(), 0.2).to(dtype))


def test_autocast_changes_nothing() -> None:
    x, y_pos = draw_tensor(0, 6, 3), draw_tensor(1, 7, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = drift_field(x, y_pos, x, 0.2)
    assert torch.equal(field, drift_field(x, y_pos, x, 0.2))


def test_carries_no_gradient() -> None:
    x, y_pos = draw_tensor(0, 6, 3).requires_grad_(), draw_tensor(1, 7, 3).requires_grad_()
    assert not drift_field(x, y_pos, x, 0.2).requires_grad
