"""The normaliser: range, constant dimensions, round trips and wrong data."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drift_policy.data.normalizer import CONSTANT_RANGE, Normalizer
from drift_policy.errors import CheckpointError, ConfigurationError, DataError

values = st.floats(-1e5, 1e5, width=32, allow_subnormal=False)
data_arrays = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=values)
)


@settings(max_examples=200)
@given(data=data_arrays)
def test_data_is_mapped_to_plus_minus_one_and_back(data: np.ndarray) -> None:
    normalizer = Normalizer.fit({"x": data})
    value = torch.from_numpy(data)
    normalised = normalizer.normalize("x", value)
    largest, spread = value.abs().amax(dim=0), value.amax(dim=0) - value.amin(dim=0)
    scaled = spread >= CONSTANT_RANGE
    # float32 resolves a range that is small against its distance from zero only so far.
    resolution = 1e-5 + 4 * torch.finfo(torch.float32).eps * largest / spread.clamp(min=CONSTANT_RANGE)
    assert bool((normalised.abs() <= 1 + resolution).all())
    if bool(scaled.any()):
        extremes = torch.stack([normalised.amin(dim=0), normalised.amax(dim=0)])[:, scaled]
        target = torch.tensor([[-1.0], [1.0]]).expand_as(extremes)
        assert bool(((extremes - target).abs() <= resolution[scaled]).all())
    restored = normalizer.unnormalize("x", normalised)
    assert bool(((restored - value).abs() <= 1e-6 * (largest + spread) + 1e-6).all())


@settings(max_examples=50)
@given(data=data_arrays, outside=st.floats(-3, 3))
def test_any_normalised_value_survives_the_way_back(data: np.ndarray, outside: float) -> None:
    """A policy's answer need not lie in the range of the data."""
    normalizer = Normalizer.fit({"x": data})
    value = torch.full((2, 3, data.shape[1]), outside)
    again = normalizer.normalize("x", normalizer.unnormalize("x", value))
    largest, spread = np.abs(data).max(axis=0), np.ptp(data.astype(np.float64), axis=0)
    resolution = 1e-5 + 1e-6 * (largest + spread) / np.where(spread < CONSTANT_RANGE, 2.0, spread)
    assert bool(((again - value).abs() <= torch.from_numpy(resolution)).all())


def test_known_numbers() -> None:
    normalizer = Normalizer.fit({"action": np.array([[0.0, -2.0], [512.0, 2.0], [128.0, 1.0]]), "obs": np.eye(3)})
    normalised = normalizer.normalize("action", torch.tensor([[0.0, -2.0], [512.0, 2.0], [256.0, 0.0], [768.0, 4.0]]))
    assert torch.equal(normalised, torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]))
    assert normalizer.sizes == {"action": 2, "obs": 3}


@pytest.mark.parametrize("centre", [0.0, 5.0, -300.0])
def test_constant_dimensions_are_centred_and_not_scaled(centre: float) -> None:
    data = np.stack([np.full(4, centre), np.linspace(-1, 1, 4)], axis=1)
    normalizer = Normalizer.fit({"x": data})
    assert torch.equal(normalizer.normalize("x", torch.tensor([centre, 1.0])), torch.tensor([0.0, 1.0]))
    assert torch.equal(normalizer.normalize("x", torch.tensor([centre + 2.5, 0.0])), torch.tensor([2.5, 0.0]))
    assert torch.equal(normalizer.unnormalize("x", torch.tensor([0.0, 0.5])), torch.tensor([centre, 0.5]))


@pytest.mark.parametrize(("spread", "scaled"), [(0.049, False), (0.051, True)])
def test_the_range_that_counts_as_constant_can_be_chosen(spread: float, scaled: bool) -> None:
    normalizer = Normalizer.fit({"x": np.array([[3.0], [3.0 + spread]])}, constant_range=0.05)
    high = float(normalizer.normalize("x", torch.tensor([3.0 + spread])))
    assert high == pytest.approx(1.0 if scaled else spread, rel=1e-3)


@pytest.mark.parametrize(("spread", "scaled"), [(0.99e-4, False), (1.01e-4, True)])
def test_ranges_below_a_ten_thousandth_count_as_constant(spread: float, scaled: bool) -> None:
    normalizer = Normalizer.fit({"x": np.array([[0.0], [spread]])})
    high = float(normalizer.normalize("x", torch.tensor([spread])))
    assert high == pytest.approx(1.0 if scaled else spread, rel=1e-3)


def test_a_single_row_is_constant_in_every_dimension() -> None:
    row = torch.tensor([[3.0, -7.0, 0.0]])
    normalizer = Normalizer.fit({"x": row})
    assert torch.equal(normalizer.normalize("x", row), torch.zeros(1, 3))
    assert torch.equal(normalizer.unnormalize("x", torch.zeros(1, 3)), row)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_non_finite_data_is_refused_by_key(bad: float) -> None:
    data = np.zeros((4, 2))
    data[2, 1] = bad
    with pytest.raises(DataError, match=r"'pose'.*NaN or infinity"):
        Normalizer.fit({"obs": np.zeros((4, 2)), "pose": data})


@pytest.mark.parametrize("shape", [(0, 2), (4,), (4, 2, 1)], ids=str)
def test_wrong_shapes_are_refused_by_key(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"'pose'.*\[steps, dimensions\], got") as error:
        Normalizer.fit({"pose": np.zeros(shape)})
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("key", ["", "robot.pose"])
def test_unusable_keys_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Normalizer.fit({key: np.zeros((4, 2))})


def test_an_unfitted_normaliser_refuses_to_work_until_it_is_loaded() -> None:
    fitted, empty = Normalizer.fit({"x": np.eye(2)}), Normalizer({"x": 2})
    for call in (empty.normalize, empty.unnormalize):
        with pytest.raises(CheckpointError, match="set_normalizer"):
            call("x", torch.zeros(2))
    empty.load_state_dict(fitted.state_dict())
    assert torch.equal(empty.normalize("x", torch.eye(2)), fitted.normalize("x", torch.eye(2)))
    empty.load_state_dict(Normalizer({"x": 2}).state_dict())
    with pytest.raises(CheckpointError, match="set_normalizer"):
        empty.normalize("x", torch.zeros(2))


def test_maps_are_alike_only_where_every_number_is() -> None:
    data = {"x": np.eye(2), "y": np.eye(2)}
    one, unfitted = Normalizer.fit(data), Normalizer({"x": 2, "y": 2})
    assert one.maps_like(Normalizer.fit(data))
    assert not one.maps_like(Normalizer.fit(data | {"y": np.diag([1.0, 2.0])}))
    assert not one.maps_like(unfitted) and not unfitted.maps_like(unfitted)


def test_state_names_follow_the_keys_and_move_with_the_module() -> None:
    normalizer = Normalizer.fit({"pose": np.eye(2)})
    assert set(normalizer.state_dict()) == {"scale_pose", "offset_pose"}
    assert not list(normalizer.parameters())
    normalizer.to(torch.float64)
    result: Any = normalizer.normalize("pose", torch.eye(2, dtype=torch.float64))
    assert result.dtype == torch.float64
    assert torch.equal(result, 2 * torch.eye(2, dtype=torch.float64) - 1)


def test_normalisation_lets_gradients_through() -> None:
    normalizer = Normalizer.fit({"x": np.array([[0.0], [4.0]])})
    value = torch.tensor([1.0], requires_grad=True)
    normalizer.normalize("x", value).sum().backward()
    assert value.grad is not None and float(value.grad) == 0.5
