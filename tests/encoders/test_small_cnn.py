"""The small convolutional network: its size, the sizes of image it reads, and wrong settings."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_policy.encoders.backbones.small_cnn import SmallCnn, SmallCnnConfig
from drift_policy.encoders.backbones.spatial_softmax import SpatialSoftmax
from drift_policy.errors import ConfigurationError


def test_size_of_the_default() -> None:
    network = SmallCnn(SmallCnnConfig(), 3, 84, 84)
    convolutions = (25 * 3 + 1) * 16 + (9 * 16 + 1) * 32 + (9 * 32 + 1) * 64
    norms = 2 * (16 + 32 + 64)
    readout = (64 + 1) * 64 + (2 * 64 + 1) * 64
    assert sum(parameter.numel() for parameter in network.parameters()) == convolutions + norms + readout == 36_992


@st.composite
def layers(draw: st.DrawFn) -> SmallCnnConfig:
    number = draw(st.integers(1, 3))

    def each(values: list[int]) -> list[int]:
        return draw(st.lists(st.sampled_from(values), min_size=number, max_size=number))

    return SmallCnnConfig(each([16, 32]), each([1, 3, 5, 7]), each([1, 2, 3]), draw(st.integers(1, 4)), 5)


@settings(max_examples=25)
@given(config=layers(), channels=st.sampled_from([1, 3, 4]), height=st.integers(1, 15), width=st.integers(1, 15))
def test_any_image_and_any_layers_fit_together(config: SmallCnnConfig, channels: int, height: int, width: int) -> None:
    """The spatial softmax is built for a map of a certain size, and fails on another."""
    network = SmallCnn(config, channels, height, width)
    with torch.no_grad():
        assert network(torch.zeros(2, channels, height, width)).shape == (2, 5)


def test_the_last_map_of_the_default_is_a_quarter_of_the_image() -> None:
    softmax = SmallCnn(SmallCnnConfig(), 3, 84, 92)[-2]
    assert isinstance(softmax, SpatialSoftmax) and len(softmax.grid) == 21 * 23


def test_the_features_of_an_image_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = SmallCnn(SmallCnnConfig(), 3, 12, 16)
    images = 2 * torch.rand(3, 3, 12, 16) - 1
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert float(together.std(dim=0).mean()) > 1e-3, "the image must have an influence"


@pytest.mark.parametrize(
    ("message", "values"),
    [
        ("need one number a convolution", {"channels": [16, 32]}),
        ("need one number a convolution", {"kernel_sizes": [3, 3, 3, 3]}),
        ("need one number a convolution", {"strides": []}),
        ("need one number a convolution", {"channels": [], "kernel_sizes": [], "strides": []}),
        (r"channels must be multiples of 16, but are \[16, 24, 64\]", {"channels": [16, 24, 64]}),
        (r"channels must be multiples of 16, but are \[0, 16, 16\]", {"channels": [0, 16, 16]}),
        (r"kernel_sizes must be odd, but are \[5, 4, 3\]", {"kernel_sizes": [5, 4, 3]}),
        (r"kernel_sizes must be odd, but are \[5, -1, 3\]", {"kernel_sizes": [5, -1, 3]}),
        (r"strides must be positive: \[2, 0, 1\]", {"strides": [2, 0, 1]}),
        ("num_keypoints must be at least 1, but is 0", {"num_keypoints": 0}),
        ("feature_size must be at least 1, but is -1", {"feature_size": -1}),
    ],
)
def test_wrong_settings_are_named(message: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"small_cnn: .*{message}"):
        SmallCnnConfig(**values)
