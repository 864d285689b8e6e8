"""Properties of the drifting loss: symmetries, gradient flow, extreme inputs, precision and options."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drift_policy.drift import DEFAULT_TEMPERATURES, drift_loss
from drift_policy.drift.loss import Scope

SEEDS = st.integers(0, 2**32 - 1)
SCOPES = st.sampled_from(["batch", "group"])
FLOORS = st.sampled_from([0.0, 1e-6])
quick = settings(max_examples=25, derandomize=True)


def draw_problems(seed: int, batch: int = 3, gen: int = 6, pos: int = 5, neg: int = 4, size: int = 4) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    problems: dict[str, Any] = {
        name: torch.randn(batch, count, size, generator=rng)
        for name, count in (("gen", gen), ("pos", pos), ("neg", neg))
    }
    for name, count in (("weight_gen", gen), ("weight_pos", pos), ("weight_neg", neg)):
        problems[name] = 0.2 + 2 * torch.rand(batch, count, generator=rng)
    return problems


def loss_and_grad(problems: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """Loss [B] and the gradient of its sum with respect to gen."""
    gen = problems["gen"].detach().clone().requires_grad_()
    arguments: dict[str, Any] = problems | {"gen": gen} | options
    loss, _ = drift_loss(**arguments)
    (grad,) = torch.autograd.grad(loss.sum(), gen)
    return loss.detach(), grad


def assert_close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float = 1e-3) -> None:
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=rtol, atol=rtol * float(right.abs().max()))


def shuffle(problems: dict[str, Any], names: tuple[str, str], order: Tensor) -> dict[str, Any]:
    return problems | {name: problems[name][:, order] for name in names}


@quick
@given(SEEDS, FLOORS, SCOPES)
def test_permuted_samples_permute_the_gradient(seed: int, floor: float, scope: Scope) -> None:
    problems, order = draw_problems(seed), torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    loss, grad = loss_and_grad(problems, affinity_floor=floor, scope=scope)
    permuted = loss_and_grad(shuffle(problems, ("gen", "weight_gen"), order), affinity_floor=floor, scope=scope)
    assert_close(permuted, (loss, grad[:, order]))


@quick
@given(SEEDS, FLOORS, SCOPES)
def test_order_of_targets_and_problems_does_not_matter(seed: int, floor: float, scope: Scope) -> None:
    rng = torch.Generator().manual_seed(seed)
    problems = draw_problems(seed)
    loss, grad = loss_and_grad(problems, affinity_floor=floor, scope=scope)
    permuted = shuffle(problems, ("pos", "weight_pos"), torch.randperm(5, generator=rng))
    permuted = shuffle(permuted, ("neg", "weight_neg"), torch.randperm(4, generator=rng))
    assert_close(loss_and_grad(permuted, affinity_floor=floor, scope=scope), (loss, grad))
    order = torch.randperm(3, generator=rng)
    reordered = {name: value[order] for name, value in problems.items()}
    assert_close(loss_and_grad(reordered, affinity_floor=floor, scope=scope), (loss[order], grad[order]))


@quick
@given(SEEDS, FLOORS, SCOPES, st.sampled_from([-64.0, 8.0, 512.0]), st.sampled_from([0.125, 4.0, 1024.0]))
def test_neither_origin_nor_unit_matters(seed: int, floor: float, scope: Scope, offset: float, unit: float) -> None:
    problems = draw_problems(seed)
    for name in ("gen", "pos", "neg"):
        problems[name] = (problems[name] * 64).round() / 64  # so that adding the offset is exact
    expected = loss_and_grad(problems, affinity_floor=floor, scope=scope)
    samples = {name: problems[name] for name in ("gen", "pos", "neg")}
    moved = problems | {name: value + offset for name, value in samples.items()}
    assert_close(loss_and_grad(moved, affinity_floor=floor, scope=scope), expected)
    scaled = problems | {name: value * unit for name, value in samples.items()}
    loss, grad = loss_and_grad(scaled, affinity_floor=floor, scope=scope)
    assert_close((loss, grad * unit), expected)


@pytest.mark.parametrize("scope", ["batch", "group"])
@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e-3, 1e6, 1e18, 1e30])
def test_finite_for_collapsed_tiny_and_huge_samples(factor: float, floor: float, scope: Scope) -> None:
    problems = draw_problems(0)
    problems |= {name: problems[name] * factor for name in ("gen", "pos", "neg")}
    for result in loss_and_grad(problems, affinity_floor=floor, scope=scope):
        assert result.isfinite().all()


@pytest.mark.parametrize("factor", [1e6, 1e18, 1e30])
def test_huge_samples_lose_no_accuracy(factor: float) -> None:
    problems = draw_problems(0)
    loss, grad = loss_and_grad(problems)
    huge = problems | {name: problems[name] * factor for name in ("gen", "pos", "neg")}
    huge_loss, huge_grad = loss_and_grad(huge)
    assert_close((huge_loss, huge_grad * factor), (loss, grad))


@pytest.mark.parametrize("scope", ["batch", "group"])
@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("gap", [1e3, 1e10, 1e30])
def test_finite_for_far_apart_sets(gap: float, floor: float, scope: Scope) -> None:
    problems = draw_problems(0)
    problems["pos"] = problems["pos"] + gap
    for result in loss_and_grad(problems, affinity_floor=floor, scope=scope):
        assert result.isfinite().all()


@pytest.mark.parametrize("scope", ["batch", "group"])
@pytest.mark.parametrize("temperature", DEFAULT_TEMPERATURES)
@pytest.mark.parametrize("case", ["near", "far", "collapsed"])
def test_value_is_one_for_one_temperature(case: str, temperature: float, scope: Scope) -> None:
    """Every force has unit RMS: the loss measures nothing, however good or bad the samples are."""
    problems = draw_problems(0)
    pos = problems["pos"]
    gen = {
        "near": pos + 0.01 * torch.randn(pos.shape, generator=torch.Generator().manual_seed(1)),
        "far": problems["gen"] + 1000,
        "collapsed": torch.ones_like(problems["gen"]),
    }[case]
    loss, _ = drift_loss(gen, pos, temperatures=[temperature], scope=scope)
    torch.testing.assert_close(loss.mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    if scope == "group":
        torch.testing.assert_close(loss, torch.ones(3), rtol=1e-4, atol=0)


def test_gradient_flows_into_gen_only() -> None:
    problems: dict[str, Any] = {name: value.requires_grad_() for name, value in draw_problems(0).items()}
    loss, info = drift_loss(**problems)
    loss.sum().backward()
    for name, value in problems.items():
        assert (value.grad is not None) == (name == "gen"), name
    assert not info["scale"].requires_grad
    assert not any(force.requires_grad for force in info["force_sq"].values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    rounded = {name: value.to(dtype) for name, value in draw_problems(0).items()}
    loss, grad = loss_and_grad(rounded)
    expected_loss, expected_grad = loss_and_grad({name: value.float() for name, value in rounded.items()})
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected_loss)
    assert grad.dtype == dtype
    assert torch.equal(grad, expected_grad.to(dtype))


def test_autocast_changes_nothing() -> None:
    problems = draw_problems(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grad = loss_and_grad(problems)
    expected_loss, expected_grad = loss_and_grad(problems)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(grad, expected_grad)


@quick
@given(SEEDS, FLOORS, SCOPES)
def test_several_features_in_one_call_equal_a_call_each(seed: int, floor: float, scope: Scope) -> None:
    problems, factors = draw_problems(seed, batch=6), torch.tensor([1.0, 30.0, 0.2])
    scaled = {
        name: value * factors.repeat_interleave(2).reshape(-1, 1, 1) if value.ndim == 3 else value
        for name, value in problems.items()
    }
    together = loss_and_grad(scaled, affinity_floor=floor, scope=scope, num_features=3)
    _, info = drift_loss(**scaled, affinity_floor=floor, scope=scope, num_features=3)
    for feature in range(3):
        own = {name: value[2 * feature : 2 * feature + 2] for name, value in scaled.items()}
        part = (together[0][2 * feature : 2 * feature + 2], together[1][2 * feature : 2 * feature + 2])
        assert_close(part, loss_and_grad(own, affinity_floor=floor, scope=scope))
        _, expected = drift_loss(**own, affinity_floor=floor, scope=scope)
        torch.testing.assert_close(info["scale"][feature], expected["scale"])
        for temperature, force_sq in expected["force_sq"].items():
            torch.testing.assert_close(info["force_sq"][temperature][feature], force_sq)


@pytest.mark.parametrize("number", [0, 4])
def test_features_share_the_problems_equally(number: int) -> None:
    with pytest.raises(ValueError, match="num_features must divide the 6 problems of gen, but is"):
        drift_loss(**draw_problems(0, batch=6), num_features=number)


@quick
@given(SEEDS, FLOORS)
def test_group_scope_equals_separate_calls(seed: int, floor: float) -> None:
    problems = draw_problems(seed)
    problems["gen"] = problems["gen"] * torch.tensor([0.1, 1.0, 20.0]).reshape(3, 1, 1)
    loss, grad = loss_and_grad(problems, affinity_floor=floor, scope="group")
    for b in range(3):
        single = {name: value[b : b + 1] for name, value in problems.items()}
        for scope in ("batch", "group"):
            expected = loss_and_grad(single, affinity_floor=floor, scope=scope)
            assert_close((loss[b : b + 1], grad[b : b + 1]), expected)


@pytest.mark.parametrize("factor", [1e8, 1e30])
def test_group_scope_ignores_a_huge_neighbour(factor: float) -> None:
    problems = draw_problems(0)
    loss, grad = loss_and_grad(problems, scope="group")
    huge = torch.tensor([1.0, 1.0, factor]).reshape(3, 1, 1)
    spoiled = problems | {name: problems[name] * huge for name in ("gen", "pos", "neg")}
    spoiled_loss, spoiled_grad = loss_and_grad(spoiled, scope="group")
    assert_close((spoiled_loss[:2], spoiled_grad[:2]), (loss[:2], grad[:2]), rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1e6, 1e20, 1e30])
@pytest.mark.parametrize("scope", ["batch", "group"])
def test_a_problem_without_weight_changes_nothing_however_large(factor: float, scope: Scope) -> None:
    problems = draw_problems(3, batch=2, neg=0)
    for name in ("weight_gen", "weight_pos"):
        problems[name] = torch.tensor([[0.0], [1.0]]).expand_as(problems[name]).contiguous()
    del problems["neg"], problems["weight_neg"]
    expected = loss_and_grad(problems, scope=scope)
    problems["gen"][0] *= factor
    loss, grad = loss_and_grad(problems, scope=scope)
    torch.testing.assert_close(loss[1], expected[0][1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grad[1], expected[1][1], rtol=1e-3, atol=1e-5)
    assert float(loss[0]) < 1 and float(grad[0].abs().max()) < 1


def test_batch_scope_couples_the_problems() -> None:
    problems = draw_problems(0)
    problems["gen"] = problems["gen"] * torch.tensor([0.1, 1.0, 20.0]).reshape(3, 1, 1)
    loss, _ = loss_and_grad(problems, scope="batch")
    separate, _ = loss_and_grad(problems, scope="group")
    assert (loss - separate).abs().max() > 0.1


@quick
@given(SEEDS, FLOORS, SCOPES, st.permutations(DEFAULT_TEMPERATURES))
def test_order_of_temperatures_does_not_matter(seed: int, floor: float, scope: Scope, order: list[float]) -> None:
    problems = draw_problems(seed)
    expected = loss_and_grad(problems, affinity_floor=floor, scope=scope)
    assert_close(loss_and_grad(problems, temperatures=order, affinity_floor=floor, scope=scope), expected, rtol=1e-5)


@quick
@given(SEEDS, SCOPES, st.sampled_from([0.25, 8.0]))
def test_common_factor_of_all_weights_does_not_matter(seed: int, scope: Scope, factor: float) -> None:
    """The scale is a weighted mean and the force is normalised: only the ratios of the weights count."""
    problems = draw_problems(seed)
    scaled = problems | {name: factor * value for name, value in problems.items() if name.startswith("weight")}
    # A wide kernel keeps the force above the lower clip of its norm, which knows no factor.
    options: dict[str, Any] = {"scope": scope, "temperatures": [1.0]}
    assert_close(loss_and_grad(scaled, **options), loss_and_grad(problems, **options))


def test_unit_weights_equal_no_weights() -> None:
    problems = draw_problems(0)
    ones = {name: torch.ones_like(value) for name, value in problems.items() if name.startswith("weight")}
    samples = {name: value for name, value in problems.items() if not name.startswith("weight")}
    assert_close(loss_and_grad(samples | ones), loss_and_grad(samples), rtol=1e-6)


def test_weights_act_after_the_softmaxes() -> None:
    """Negatives of weight zero neither push nor count in the scale, but still take their share of the affinities."""
    problems = draw_problems(0)
    samples: dict[str, Any] = {"gen": problems["gen"], "pos": problems["pos"]}
    loss, grad = loss_and_grad(samples)
    silent: dict[str, Any] = {"neg": samples["pos"] + 0.01, "weight_neg": torch.zeros(3, 5)}
    silent_loss, silent_grad = loss_and_grad(samples | silent)
    _, info = drift_loss(**samples)
    _, silent_info = drift_loss(**samples, **silent)
    torch.testing.assert_close(silent_info["scale"], info["scale"])
    ratio = silent_info["force_sq"][0.2] / info["force_sq"][0.2]
    assert ratio < 0.9
    assert (silent_grad - grad).abs().max() > 1e-3 * grad.abs().max()
    assert not torch.equal(silent_loss, loss)


def test_weighted_negatives_repel() -> None:
    """A sample between a positive on either side is pushed off the side whose extra negative weighs more."""
    gen = torch.tensor([[[0.0], [0.0]]])
    pos = torch.tensor([[[-1.0], [1.0]]])
    neg = torch.tensor([[[-1.0], [1.0]]])
    _, grad = loss_and_grad({"gen": gen, "pos": pos, "neg": neg, "weight_neg": torch.tensor([[3.0, 1.0]])})
    assert (grad < 0).all()  # descent moves to the right, away from the heavier negative
    _, balanced = loss_and_grad({"gen": gen, "pos": pos, "neg": neg})
    torch.testing.assert_close(balanced, torch.zeros_like(balanced), rtol=0, atol=1e-5)


def test_empty_negatives_equal_none() -> None:
    problems = draw_problems(0)
    samples: dict[str, Any] = {"gen": problems["gen"], "pos": problems["pos"]}
    empty = {"neg": torch.empty(3, 0, 4), "weight_neg": torch.empty(3, 0)}
    assert_close(loss_and_grad(samples | empty), loss_and_grad(samples), rtol=1e-6)


def test_floor_lets_far_positives_pull() -> None:
    """Two clusters of samples, one positive inside the left one: only with a floor do the right samples feel it."""
    rng = torch.Generator().manual_seed(0)
    cluster = 0.5 * torch.randn(1, 4, 2, generator=rng)
    gen = torch.cat([cluster, cluster + torch.tensor([50.0, 0.0])], dim=1)
    pos = cluster[:, :1] + 0.1
    steps = {floor: -loss_and_grad({"gen": gen, "pos": pos}, affinity_floor=floor)[1] for floor in (0.0, 1e-6)}
    pulls = {floor: step[0, 4:, 0].abs().max() / step.abs().max() for floor, step in steps.items()}
    assert (steps[1e-6][0, 4:, 0] < 0).all()  # to the left
    assert pulls[1e-6] > 0.1
    assert pulls[0.0] < 1e-2


def test_positive_in_reach_attracts_and_siblings_repel() -> None:
    gen = torch.tensor([[[-0.1, 0.0], [0.1, 0.0]]], requires_grad=True)
    pos = torch.tensor([[[0.0, 1.0]]])
    loss, _ = drift_loss(gen, pos)
    (grad,) = torch.autograd.grad(loss.sum(), gen)
    step = -grad[0]
    assert (step[:, 1] > 0).all()  # both up to the positive
    assert step[0, 0] < 0 < step[1, 0]  # and away from each other


def test_raw_force_falls_as_the_sets_meet() -> None:
    """What to plot instead of the loss: the force before its normalisation."""
    problems = draw_problems(0, gen=64, pos=64)
    forces = [
        drift_loss(problems["gen"] + offset, problems["pos"])[1]["force_sq"][0.2].item() for offset in (1.0, 0.5, 0.0)
    ]
    assert forces[0] > 2 * forces[1] > 4 * forces[2]


def test_distances_of_samples_to_themselves_are_no_rounding_error() -> None:
    point = torch.nn.functional.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    gen = torch.stack([point, -point], dim=1)  # [64, 2, 16]: one from the origin, two from each other
    scale = drift_loss(gen, torch.zeros(64, 1, 16))[1]["scale"]
    assert scale.item() == pytest.approx((1e-4 + 2 + 1) / 3, rel=1e-6)
