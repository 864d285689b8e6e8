"""Learned temperatures: the step that is judged, where gradients go, and that other demonstrations are the judges."""

from typing import Any

import pytest
import torch
from torch import Tensor

from drift_policy.drift import drift_loss, drifted_samples, energy_loss, temperature_score
from drift_policy.drift.loss import Scope

SCOPES = pytest.mark.parametrize("scope", ["batch", "group"])
FLOORS = pytest.mark.parametrize("floor", [0.0, 1e-6])
LENGTH = 2.0  # of a mode


def problems(batch: int = 3, samples: int = 5, size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gen = torch.randn(batch, samples, size, generator=generator, dtype=torch.float64)
    return gen, 1 + torch.randn(batch, 1, size, generator=generator, dtype=torch.float64)


def two_modes(number: int, deviation: float, generator: torch.Generator, size: int = 16) -> Tensor:
    """Samples [64, number, size] of an even mixture of +u and -u, u another one in each problem but always the same."""
    u = torch.randn(64, 1, size, generator=torch.Generator().manual_seed(0))
    signs = 2.0 * torch.randint(0, 2, (64, number, 1), generator=generator) - 1
    return LENGTH * signs * u / u.norm(dim=2, keepdim=True) + deviation * torch.randn(
        64, number, size, generator=generator
    )


@SCOPES
@FLOORS
@pytest.mark.parametrize("temperatures", [[0.3], [0.1, 0.5, 1.0]])
def test_the_step_is_the_force_of_the_loss_over_the_number_of_temperatures(
    scope: Scope, floor: float, temperatures: list[float]
) -> None:
    gen, pos = problems()
    given = gen.clone().requires_grad_()
    loss, info = drift_loss(given, pos, temperatures=temperatures, affinity_floor=floor, scope=scope)
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    drifted = drifted_samples(
        gen, pos, torch.tensor(temperatures, dtype=torch.float64), affinity_floor=floor, scope=scope
    )
    if scope == "batch":
        scales = info["scale"].expand(3)
    else:
        scales = torch.stack([drift_loss(g[None], p[None])[1]["scale"] for g, p in zip(gen, pos, strict=True)])
    # loss = mean(((gen - goal) / unit)^2) with unit = scale / sqrt(S), so its gradient is -2 force / (G S unit^2).
    force = -gradient * gen[0].numel() / 2 * (scales.square() / gen.shape[2]).reshape(-1, 1, 1)
    torch.testing.assert_close(drifted, gen + force / len(temperatures), rtol=1e-6, atol=1e-6)


@SCOPES
def test_tensors_are_temperatures_like_numbers_and_get_no_gradient_from_the_loss(scope: Scope) -> None:
    gen, pos = problems()
    numbers = [0.1, 0.5]
    tensor = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    expected, expected_info = drift_loss(gen, pos, temperatures=numbers, scope=scope)
    loss, info = drift_loss(gen.requires_grad_(), pos, temperatures=tensor, scope=scope)
    assert torch.equal(loss, expected) and torch.equal(info["scale"], expected_info["scale"])
    assert list(info["force_sq"]) == [0, 1]
    assert [float(value) for value in info["force_sq"].values()] == [
        float(expected_info["force_sq"][n]) for n in numbers
    ]
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert tensor.grad is None and gen.grad is not None


@SCOPES
@FLOORS
def test_gradient_is_that_of_the_score_in_temperatures_alone(scope: Scope, floor: float) -> None:
    gen, pos = problems()
    gen.requires_grad_()
    pos.requires_grad_()
    temperatures = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)

    def score(given: Tensor) -> Tensor:
        return temperature_score(gen, pos.detach(), given, affinity_floor=floor, scope=scope).mean()

    assert torch.autograd.gradcheck(score, (temperatures,), eps=1e-6, atol=1e-6)
    temperature_score(gen, pos, temperatures, affinity_floor=floor, scope=scope).sum().backward()  # type: ignore[no-untyped-call]
    assert gen.grad is None and bool((temperatures.grad != 0).all())  # type: ignore[union-attr]


def test_gradient_is_finite_where_affinities_underflow() -> None:
    gen, pos = (value.float() for value in problems(samples=6, size=32))
    temperatures = torch.tensor([1e-3, 0.02, 10.0], requires_grad=True)
    temperature_score(gen, pos + 30, temperatures, affinity_floor=0.0).sum().backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(temperatures.grad).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_score_is_that_of_demonstrations_that_did_not_attract(temperature: float) -> None:
    """With samples distributed as demonstrations are: what the attracting one says of itself is far too good."""
    generator = torch.Generator().manual_seed(1)
    value = torch.tensor([temperature])
    estimated, held_out, in_sample = [], [], []
    for _ in range(24):
        gen = two_modes(8, 0.1, generator)
        own, other = two_modes(1, 0.1, generator), two_modes(1, 0.1, generator)
        drifted = drifted_samples(gen, own, value, affinity_floor=0.0)
        estimated.append(temperature_score(gen, own, value, affinity_floor=0.0).mean())
        held_out.append(energy_loss(drifted, other)[0].mean())
        in_sample.append(energy_loss(drifted, own)[0].mean())
    means = [float(torch.stack(values).mean()) for values in (estimated, held_out, in_sample)]
    assert means[0] == pytest.approx(means[1], abs=0.02)
    if temperature == 1.0:
        assert means[1] - means[2] > 0.15


def test_wide_kernels_are_unlearned_where_modes_are_far_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    logs = torch.tensor([0.5]).log().requires_grad_()
    optimizer = torch.optim.Adam([logs], lr=0.1)
    for _ in range(60):
        score = temperature_score(two_modes(8, 0.1, generator), two_modes(1, 0.1, generator), logs.exp()).mean()
        optimizer.zero_grad()
        score.backward()
        optimizer.step()
    assert logs.detach().exp().item() < 0.1


WRONG: list[tuple[str, dict[str, Any]]] = [
    (r"temperatures must have shape \[R\]", {"temperatures": torch.tensor(0.1)}),
    (r"temperatures must have shape \[R\]", {"temperatures": torch.zeros(0)}),
    ("temperatures must be positive and finite", {"temperatures": torch.tensor([0.1, 0.0])}),
    ("temperatures must be positive and finite", {"temperatures": torch.tensor([torch.nan])}),
    ("temperatures must hold floating-point numbers", {"temperatures": torch.tensor([1])}),
    ("gen must hold at least 4 samples of every problem, but holds 3", {"gen": torch.randn(3, 3, 4)}),
    ("affinity_floor must be in", {"affinity_floor": 1.0}),
    ("scope must be", {"scope": "all"}),
    (r"pos must have shape \[3, samples, 4\]", {"pos": torch.randn(3, 1, 5)}),
]


@pytest.mark.parametrize(("message", "wrong"), WRONG)
def test_wrong_arguments_are_named(message: str, wrong: dict[str, Any]) -> None:
    gen, pos = (value.float() for value in problems())
    arguments = {"gen": gen, "pos": pos, "temperatures": torch.tensor([0.1])} | wrong
    with pytest.raises(ValueError, match=message):
        temperature_score(**arguments)
