"""Spatial softmax: the coordinates of what is bright in a feature map."""

import pytest
import torch
from torch import Tensor

from drift_policy.encoders.backbones.spatial_softmax import SpatialSoftmax

HEIGHT, WIDTH = 5, 9


def reader(keypoints: int = 1, height: int = HEIGHT, width: int = WIDTH) -> SpatialSoftmax:
    """A spatial softmax whose k-th keypoint reads the k-th channel as it is."""
    layer = SpatialSoftmax(keypoints, height, width, keypoints)
    with torch.no_grad():
        layer.maps.weight.copy_(torch.eye(keypoints)[:, :, None, None])
        layer.maps.bias.zero_()  # type: ignore[union-attr]  # there is one
    return layer


def bright(row: int, column: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """A map [1, 1, h, w] that is 100 in one place and 0 elsewhere."""
    features = torch.zeros(1, 1, height, width)
    features[0, 0, row, column] = 100.0
    return features


@pytest.mark.parametrize(
    ("row", "column", "x", "y"),
    [(0, 0, -1.0, -1.0), (0, 8, 1.0, -1.0), (4, 0, -1.0, 1.0), (4, 8, 1.0, 1.0), (2, 4, 0.0, 0.0), (1, 7, 0.75, -0.5)],
)
def test_a_single_bright_pixel_gives_its_x_and_y(row: int, column: int, x: float, y: float) -> None:
    torch.testing.assert_close(reader()(bright(row, column)), torch.tensor([[x, y]]))


def test_every_keypoint_has_its_x_and_y_beside_each_other() -> None:
    features = torch.cat([bright(0, 8), bright(4, 4), bright(1, 0)], dim=1)
    expected = torch.tensor([[1.0, -1.0, 0.0, 1.0, -1.0, -0.5]])
    torch.testing.assert_close(reader(3)(features), expected)


def test_images_of_a_batch_are_read_separately() -> None:
    places = torch.cat([bright(0, 0), bright(4, 8), bright(2, 4)])
    torch.testing.assert_close(reader()(places), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]))


def test_two_bright_pixels_give_the_place_between_them() -> None:
    torch.testing.assert_close(reader()(bright(0, 0) + bright(4, 4)), torch.tensor([[-0.5, 0.0]]))


def test_a_flat_map_gives_the_centre() -> None:
    torch.testing.assert_close(reader()(torch.full((1, 1, HEIGHT, WIDTH), 7.0)), torch.zeros(1, 2))


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 1), (2, -3)])
def test_a_moved_pattern_moves_its_keypoint_by_as_much(rows: int, columns: int) -> None:
    pattern = torch.zeros(1, 1, 16, 20)
    pattern[0, 0, 6:9, 8:11] = 30.0 + torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    layer = reader(1, 16, 20)
    moved = layer(pattern.roll((rows, columns), dims=(2, 3))) - layer(pattern)
    torch.testing.assert_close(moved, torch.tensor([[columns * 2 / 19, rows * 2 / 15]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 1.0, 1e6])
def test_coordinates_stay_in_range(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = strength * torch.randn(8, 4, HEIGHT, WIDTH, generator=generator)
    keypoints = SpatialSoftmax(4, HEIGHT, WIDTH, 6)(features).detach()
    assert keypoints.shape == (8, 12)
    assert float(keypoints.abs().max()) <= 1 + 1e-6
    assert (float(keypoints.std(dim=0).min()) > 0) == (strength > 0)


def test_it_stays_in_float32_under_autocast() -> None:
    """Bfloat16 keeps three digits: a keypoint would jump by a third of a pixel of a 96 pixel image."""
    layer = SpatialSoftmax(4, HEIGHT, WIDTH, 6)
    features = torch.randn(8, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert (features @ features.mT).dtype == torch.bfloat16
        keypoints = layer(features)
    assert keypoints.dtype == torch.float32
    assert torch.equal(keypoints, layer(features.float()))


def test_a_checkpoint_holds_the_weights_alone() -> None:
    assert set(reader().state_dict()) == {"maps.weight", "maps.bias"}


def test_all_parameters_are_trained() -> None:
    layer = SpatialSoftmax(4, HEIGHT, WIDTH, 2)
    layer(torch.randn(3, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    # One number added to a whole map changes no softmax: the bias has the gradient of rounding.
    assert layer.maps.weight.grad is not None and bool((layer.maps.weight.grad.abs() > 1e-4).all())
