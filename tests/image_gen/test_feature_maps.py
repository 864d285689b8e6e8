"""Statistics of feature maps against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_policy.errors import ConfigurationError
from image_gen.feature_maps import FeatureSettings, input_rms, map_features


@settings(max_examples=20)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(2, 4),
)
def test_statistics_equal_numpy(batch: int, channels: int, height: int, width: int, size: int) -> None:
    maps = torch.randn(batch, channels, height, width)
    features = map_features("m", maps, FeatureSettings(patch_mean_size=[size], patch_std_size=[size]))
    array = maps.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(features["m"].numpy(), array.reshape(batch, -1, channels))
    np.testing.assert_allclose(features["m_mean"][:, 0].numpy(), array.mean(axis=(1, 2)), atol=1e-6)
    expected = np.sqrt(array.var(axis=(1, 2)) + 1e-6)
    np.testing.assert_allclose(features["m_std"][:, 0].numpy(), expected, rtol=1e-4, atol=1e-6)
    tiled = height % size == 0 and width % size == 0
    assert (f"m_mean_{size}" in features) == (f"m_std_{size}" in features) == tiled
    if tiled:
        columns = width // size
        for location, (row, column) in enumerate(np.ndindex(height // size, columns)):
            window = array[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            np.testing.assert_allclose(
                features[f"m_mean_{size}"][:, location].numpy(), window.mean(axis=(1, 2)), atol=1e-6
            )
            expected = np.sqrt(window.var(axis=(1, 2)) + 1e-6)
            np.testing.assert_allclose(features[f"m_std_{size}"][:, location].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_constant_maps_have_finite_gradients() -> None:
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    sum(value.sum() for value in map_features("m", maps, FeatureSettings()).values()).backward()  # type: ignore[union-attr]  # sum of tensors
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_input_rms() -> None:
    maps = torch.randn(2, 3, 5, 4)
    np.testing.assert_allclose(input_rms(maps)[:, 0].numpy(), np.sqrt((maps.numpy() ** 2).mean(axis=(2, 3))), rtol=1e-4)


def test_statistics_of_half_precision_are_float32() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = map_features("m", maps, FeatureSettings()) | {"rms": input_rms(maps)}
    expected = map_features("m", maps.float(), FeatureSettings()) | {"rms": input_rms(maps.float())}
    for name in ("m_std", "m_std_2", "m_std_4", "rms"):
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("sizes", [[1], [2, 2], [0]])
def test_impossible_windows_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="patch_mean_size must hold different sides of at least 2"):
        FeatureSettings(patch_mean_size=sizes)
