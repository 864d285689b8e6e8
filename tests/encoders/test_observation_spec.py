"""What may be said about a key of an observation, and what is refused."""

from typing import Any

import pytest

from drift_policy.encoders import ObservationSpec
from drift_policy.errors import ConfigurationError


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({"shape": [3, 96, 72]}, (96, 72)),
        ({"shape": [1, 96, 72], "crop": [84, 60]}, (84, 60)),
        ({"shape": [4, 96, 72], "resize": [48, 36]}, (48, 36)),
        ({"shape": [3, 96, 72], "resize": [48, 36], "crop": [40, 30]}, (40, 30)),
        ({"shape": [3, 96, 72], "crop": [96, 72]}, (96, 72)),
        ({"shape": [3, 10, 12], "crop": [5, 12]}, (5, 12)),  # exactly half of it
    ],
)
def test_the_network_sees_the_image_after_scaling_and_crop(values: dict[str, Any], size: tuple[int, int]) -> None:
    assert ObservationSpec(kind="image", **values).input_size == size


@pytest.mark.parametrize(
    ("message", "values"),
    [
        (r"not \[96, 96\]", {"shape": [96, 96]}),
        (r"not \[\]", {}),
        (r"not \[3, 0, 96\]", {"shape": [3, 0, 96]}),
        (r"not \[2, 3, 96, 96\]", {"shape": [2, 3, 96, 96]}),
        (r"\[96, 72, 3\] says 96\. The channels come first\.", {"shape": [96, 72, 3]}),
        (r"1, 3, 4 channels, but .*\[2, 96, 96\] says 2\.$", {"shape": [2, 96, 96]}),
        (r"resize is \[height, width\] of an image, but is \[48\]", {"shape": [3, 96, 96], "resize": [48]}),
        (r"resize is \[height, width\] of an image, but is \[0, 48\]", {"shape": [3, 96, 96], "resize": [0, 48]}),
        (r"crop is \[height, width\] of an image, but is \[3, 84, 84\]", {"shape": [3, 96, 96], "crop": [3, 84, 84]}),
        (r"crop is \[height, width\] of an image, but is \[84, -1\]", {"shape": [3, 96, 96], "crop": [84, -1]}),
        (r"crop of \[97, 96\] does not fit .* \[96, 96\]", {"shape": [3, 96, 96], "crop": [97, 96]}),
        (r"crop of \[84, 84\] does not fit .* \[96, 72\]", {"shape": [3, 96, 72], "crop": [84, 84]}),
        (
            r"crop of \[84, 84\] does not fit .* \[64, 64\]",
            {"shape": [3, 96, 96], "resize": [64, 64], "crop": [84, 84]},
        ),
        (r"crop of \[76, 76\] keeps only 8% of .* \[240, 320\].*Scale", {"shape": [3, 240, 320], "crop": [76, 76]}),
        (r"crop of \[5, 11\] keeps only 46% of .* \[10, 12\].*Scale", {"shape": [3, 10, 12], "crop": [5, 11]}),
        (
            r"crop of \[50, 50\] keeps only 39% of .* \[80, 80\]",
            {"shape": [3, 96, 96], "resize": [80, 80], "crop": [50, 50]},
        ),
    ],
)
def test_a_wrong_image_is_named(message: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ObservationSpec(kind="image", **values)


@pytest.mark.parametrize("name", ["crop", "resize"])
def test_numbers_are_neither_cropped_nor_scaled(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no resize and no crop: those are for kind: image"):
        ObservationSpec(shape=[5], **{name: [2, 2]})  # type: ignore[arg-type]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'camera' is unknown: expected one of \['image', 'state'\]"):
        ObservationSpec(kind="camera", shape=[3, 96, 96])
