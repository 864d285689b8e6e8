"""What the network of an image sees: range, scaling, crop, and that the given image stays as it is."""

import pytest
import torch
from torch import Tensor

from drift_policy.encoders.crop import crop_at
from drift_policy.encoders.image import ImagePreprocessing
from tests.helpers.image_policies import camera

SPECS = {
    "plain": camera(),
    "cropped": camera(crop=[8, 9]),
    "scaled": camera(resize=[7, 16]),
    "scaled and cropped": camera(resize=[8, 16], crop=[7, 11]),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def random_bytes(number: int = 4) -> Tensor:
    return torch.randint(256, (number, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_black_is_minus_one_and_white_is_one() -> None:
    preprocessing = ImagePreprocessing(camera())
    values = torch.tensor([0, 51, 204, 255], dtype=torch.uint8)
    images = values[:, None, None, None].expand(4, 3, 10, 12)
    for given in (images, images.float() / 255, images.double() / 255):
        seen = preprocessing(given)
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen[:, 1, 2, 3], torch.tensor([-1.0, -0.6, 0.6, 1.0]))


@every_spec
def test_bytes_and_floats_give_equal_features(spec: object) -> None:
    preprocessing = ImagePreprocessing(spec)  # type: ignore[arg-type]
    images = random_bytes()
    seen = preprocessing(images)
    torch.testing.assert_close(preprocessing(images.float() / 255), seen, rtol=0, atol=1e-5)
    assert seen.shape == (4, 3, *spec.input_size)  # type: ignore[attr-defined]
    assert float(seen.min()) < -0.5 and float(seen.max()) > 0.5 and float(seen.abs().max()) <= 1 + 1e-6


@every_spec
@pytest.mark.parametrize("as_float", [False, True])
def test_the_given_image_is_not_modified(spec: object, as_float: bool) -> None:
    images = random_bytes().float() / 255 if as_float else random_bytes()
    before = images.clone()
    ImagePreprocessing(spec)(images)  # type: ignore[arg-type]
    assert torch.equal(images, before)


@every_spec
def test_the_memory_layout_makes_no_difference(spec: object) -> None:
    preprocessing = ImagePreprocessing(spec)  # type: ignore[arg-type]
    images = random_bytes()
    corners = preprocessing.draw(4, 1, torch.Generator().manual_seed(0))
    flat = None if corners is None else corners.flatten(0, 1)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(preprocessing(channels_last, flat), preprocessing(images, flat), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_the_centre_is_taken_without_corners(training: bool) -> None:
    images = random_bytes()
    plain, cropped = ImagePreprocessing(SPECS["plain"]), ImagePreprocessing(SPECS["cropped"]).train(training)
    assert torch.equal(cropped(images), plain(images)[:, :, 1:9, 1:10])


def test_the_crop_is_of_the_scaled_image() -> None:
    spec = SPECS["scaled and cropped"]
    scaled, cropped = ImagePreprocessing(camera(resize=spec.resize)), ImagePreprocessing(spec)
    corners = cropped.draw(300, 2, torch.Generator().manual_seed(0))
    assert corners is not None and corners.shape == (300, 2, 2)
    assert corners.amin(dim=(0, 1)).tolist() == [0, 0] and corners.amax(dim=(0, 1)).tolist() == [8 - 7, 16 - 11]
    images = random_bytes()
    expected = crop_at(scaled(images), corners[:4, 0], (7, 11))
    torch.testing.assert_close(cropped(images, corners[:4, 0]), expected)


def test_without_crop_there_is_nothing_to_draw() -> None:
    assert ImagePreprocessing(camera(resize=[7, 16])).draw(4, 2, None) is None


def test_scaling_to_the_same_size_changes_nothing() -> None:
    images = random_bytes()
    same, plain = ImagePreprocessing(camera(resize=[10, 12])), ImagePreprocessing(camera())
    torch.testing.assert_close(same(images), plain(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 6), (20, 30)])
def test_scaling_keeps_brightness_and_orientation(size: tuple[int, int]) -> None:
    """A ramp over the columns of one channel and over the rows of another stays one; a grey channel stays grey."""
    images = torch.zeros(1, 3, 10, 12, dtype=torch.uint8)
    images[:, 0] = torch.arange(12, dtype=torch.uint8) * 20
    images[:, 1] = (torch.arange(10, dtype=torch.uint8) * 20)[:, None]
    images[:, 2] = 51
    seen = ImagePreprocessing(camera(resize=list(size)))(images)
    assert seen.shape == (1, 3, *size)
    columns, rows = seen[0, 0], seen[0, 1]
    assert bool((columns.diff(dim=1) >= -1e-6).all()) and bool((columns[:, -1] - columns[:, 0] > 1).all())
    assert bool((rows.diff(dim=0) >= -1e-6).all()) and bool((rows[-1] - rows[0] > 0.9).all())
    assert float(columns.diff(dim=0).abs().max()) < 1e-5 and float(rows.diff(dim=1).abs().max()) < 1e-5
    torch.testing.assert_close(seen[0, 2], torch.full(size, -0.6))


def test_scaling_down_averages_what_it_leaves_out() -> None:
    """The middle one of every three rows is white: without antialiasing the policy would see a white image."""
    images = torch.zeros(1, 3, 9, 12, dtype=torch.uint8)
    images[:, :, 1::3] = 255
    seen = ImagePreprocessing(camera(9, 12, resize=[3, 4]))(images)
    torch.testing.assert_close(seen[:, :, 1], torch.full((1, 3, 4), -1 / 3))


def test_the_images_have_the_type_of_the_policy() -> None:
    preprocessing = ImagePreprocessing(SPECS["scaled and cropped"]).to(torch.float64)
    assert preprocessing(random_bytes()).dtype == torch.float64
    assert preprocessing.to(torch.bfloat16)(random_bytes()).dtype == torch.bfloat16
    assert not preprocessing.state_dict(), "a checkpoint holds none of it"
