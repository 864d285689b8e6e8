"""`drift_loss` against an independent float64 version with loops over problems and temperatures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drift_policy.drift import drift_loss
from drift_policy.drift.loss import Scope

Array = NDArray[np.float64]


@dataclass
class Problems:
    """Inputs of the loss in float64; what is None is left out of the call."""

    gen: Array
    pos: Array
    neg: Array | None
    weight_gen: Array | None
    weight_pos: Array | None
    weight_neg: Array | None

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value).float() for name, value in vars(self).items() if value is not None}

    def targets(self, b: int) -> tuple[Array, Array, int]:
        """Points [M, S], weights [M] and the number of negatives of problem b: generated, extra, positive."""
        neg = self.neg[b] if self.neg is not None else np.empty((0, self.gen.shape[2]))
        parts = [(self.gen[b], self.weight_gen), (neg, self.weight_neg), (self.pos[b], self.weight_pos)]
        weights = [np.ones(len(points)) if weight is None else weight[b] for points, weight in parts]
        return np.concatenate([points for points, _ in parts]), np.concatenate(weights), self.gen.shape[1] + len(neg)


@dataclass
class Expected:
    """Outputs of the loss; `grad` belongs to the sum of the losses."""

    loss: Array
    grad: Array
    scale: float
    force_sq: dict[float, float]


def softmax(logits: Array, axis: int) -> Array:
    exponentials = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def distances_of(problems: Problems, b: int) -> Array:
    points, _, _ = problems.targets(b)
    squared = np.array([[np.sum((g - t) ** 2) for t in points] for g in problems.gen[b]])
    return np.sqrt(np.maximum(squared, 1e-8))


def scales_of(problems: Problems, scope: Scope) -> list[float]:
    """Weighted mean distance for each problem: its own, or the one of the whole batch."""
    num_gen = problems.gen.shape[1]
    sums, masses = [], []
    for b in range(len(problems.gen)):
        _, weights, _ = problems.targets(b)
        sums.append(float((distances_of(problems, b) * weights).sum()) / num_gen)
        masses.append(float(weights.sum()))
    if scope == "group":
        return [total / mass for total, mass in zip(sums, masses, strict=True)]
    return [sum(sums) / sum(masses)] * len(sums)


def force_of(problems: Problems, b: int, scale: float, temperature: float, floor: float) -> Array:
    """The force [G, S] of one problem at one temperature before its normalisation, in normalised units."""
    points, weights, num_neg = problems.targets(b)
    num_gen, size = problems.gen.shape[1:]
    normalised = distances_of(problems, b) / max(scale, 1e-3)
    for i in range(num_gen):
        normalised[i, i] += 100
    logits = -normalised / temperature
    affinity = np.sqrt(np.maximum(softmax(logits, 1) * softmax(logits, 0), floor)) * weights
    unit = max(scale / np.sqrt(size), 1e-3)
    force = np.zeros((num_gen, size))
    for i in range(num_gen):
        mass_neg, mass_pos = affinity[i, :num_neg].sum(), affinity[i, num_neg:].sum()
        for j, point in enumerate(points):
            coefficient = -affinity[i, j] * mass_pos if j < num_neg else affinity[i, j] * mass_neg
            force[i] += coefficient * (point - problems.gen[b, i]) / unit
    return force


def naive_drift_loss(problems: Problems, temperatures: list[float], floor: float, scope: Scope) -> Expected:
    num_problems, num_gen, size = problems.gen.shape
    scales = scales_of(problems, scope)
    drift = np.zeros_like(problems.gen)
    force_sq = {}
    for temperature in temperatures:
        forces = [force_of(problems, b, scales[b], temperature, floor) for b in range(num_problems)]
        squares = [float((force**2).mean()) for force in forces]
        force_sq[temperature] = float(np.mean(squares))
        for b in range(num_problems):
            norm = squares[b] if scope == "group" else force_sq[temperature]
            drift[b] += forces[b] / np.sqrt(max(norm, 1e-8))
    units = np.array([max(scale / np.sqrt(size), 1e-3) for scale in scales]).reshape(-1, 1, 1)
    return Expected(
        loss=(drift**2).mean(axis=(1, 2)),
        grad=-2 * drift / (units * num_gen * size),
        scale=float(np.mean(scales)),
        force_sq=force_sq,
    )


@st.composite
def problem_sets(draw: st.DrawFn) -> Problems:
    num_problems, num_gen, num_pos = (draw(st.integers(1, high)) for high in (4, 7, 6))
    num_neg = draw(st.sampled_from([None, 0, 1, 4]))
    size = draw(st.sampled_from([1, 2, 5, 14]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.1, 1.0, 30.0]))
    shift = draw(st.sampled_from([0.0, 1.0, 10.0]))

    def samples(count: int) -> Array:
        # Rounded to float32, so that both versions see the same numbers.
        return rng.normal(0, spread, (num_problems, count, size)).astype(np.float32).astype(np.float64)

    def weights(count: int) -> Array | None:
        if not draw(st.booleans()):
            return None
        values = rng.choice([0.0, 0.5, 1.0, 3.0], (num_problems, count)) + 0.25 * (count == num_gen)
        return np.asarray(values, dtype=np.float64)

    return Problems(
        gen=samples(num_gen),
        pos=samples(num_pos) + shift,
        neg=None if num_neg is None else samples(num_neg),
        weight_gen=weights(num_gen),
        weight_pos=weights(num_pos),
        weight_neg=None if num_neg is None else weights(num_neg),
    )


@settings(max_examples=80, derandomize=True)
@given(
    problem_sets(),
    st.sampled_from([[0.02, 0.05, 0.2], [0.2], [1.0, 0.05]]),
    st.sampled_from([0.0, 1e-10, 1e-6, 1e-2]),
    st.sampled_from(["batch", "group"]),
)
def test_equals_naive_loops(problems: Problems, temperatures: list[float], floor: float, scope: Scope) -> None:
    expected = naive_drift_loss(problems, temperatures, floor, scope)
    inputs: dict[str, Any] = dict(problems.tensors())
    gen = inputs["gen"].requires_grad_()
    loss, info = drift_loss(**inputs, temperatures=temperatures, affinity_floor=floor, scope=scope)
    (grad,) = torch.autograd.grad(loss.sum(), gen)

    largest = float(np.abs(expected.grad).max())
    np.testing.assert_allclose(loss.detach().numpy(), expected.loss, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(grad.numpy(), expected.grad, rtol=1e-3, atol=1e-3 * largest + 1e-12)
    assert float(info["scale"]) == pytest.approx(expected.scale, rel=1e-4)
    for temperature in temperatures:
        assert float(info["force_sq"][temperature]) == pytest.approx(
            expected.force_sq[temperature], rel=2e-3, abs=1e-12
        )


def test_double_precision_stays_double() -> None:
    generator = torch.Generator().manual_seed(0)
    gen, pos = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    loss, info = drift_loss(gen, pos)
    expected, _ = drift_loss(gen.float(), pos.float())
    assert loss.dtype == info["scale"].dtype == torch.float64
    torch.testing.assert_close(loss.float(), expected, rtol=1e-4, atol=1e-5)
