"""Crops: equal to slicing, drawn uniformly over all that fit, one for each image."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drift_policy.encoders.crop import crop_at, crop_centre, draw_crops


def make_images(number: int, channels: int, height: int, width: int, channels_last: bool) -> Tensor:
    """Images [N, C, H, W] in which every number differs, in either memory layout."""
    images = torch.arange(number * channels * height * width).reshape(number, channels, height, width)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@given(data=st.data())
def test_every_image_is_cut_at_its_own_corner(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    crop = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    corner = st.tuples(st.integers(0, height - crop[0]), st.integers(0, width - crop[1]))
    corners = data.draw(st.lists(corner, min_size=1, max_size=4))
    images = make_images(len(corners), data.draw(st.sampled_from([1, 3, 4])), height, width, data.draw(st.booleans()))
    sliced = [
        image[:, row : row + crop[0], column : column + crop[1]]
        for image, (row, column) in zip(images, corners, strict=True)
    ]
    assert torch.equal(crop_at(images, torch.tensor(corners), crop), torch.stack(sliced))


@given(data=st.data())
def test_the_centre_has_equal_margins(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    crop = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    images = make_images(2, 3, height, width, data.draw(st.booleans()))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    cut = crop_centre(images, crop)
    assert cut.shape == (2, 3, *crop)
    assert torch.equal(cut, images[:, :, top : top + crop[0], left : left + crop[1]])
    assert 0 <= (height - crop[0] - top) - top <= 1 and 0 <= (width - crop[1] - left) - left <= 1


def test_the_type_and_the_memory_layout_are_kept() -> None:
    for channels_last, layout in ((True, torch.channels_last), (False, torch.contiguous_format)):
        images = make_images(4, 3, 6, 7, channels_last).to(torch.uint8)
        cut = crop_at(images, torch.tensor([[0, 0], [2, 2], [1, 0], [0, 1]]), (4, 5))
        assert cut.dtype == torch.uint8 and cut.is_contiguous(memory_format=layout)


def test_corners_reach_both_ends_and_are_equally_likely() -> None:
    corners = draw_crops((500, 4), (6, 9), (4, 8), torch.Generator().manual_seed(0))
    assert corners.shape == (500, 4, 2) and not corners.is_floating_point()
    rows, columns = (torch.bincount(corners[..., axis].flatten()).tolist() for axis in (0, 1))
    assert len(rows) == 3 and all(abs(number - 2000 / 3) < 100 for number in rows)  # five standard deviations
    assert len(columns) == 2 and all(abs(number - 1000) < 110 for number in columns)


def test_a_crop_of_the_whole_image_has_one_corner() -> None:
    assert not draw_crops((5, 2), (6, 9), (6, 9), None).any()


def test_every_image_of_every_step_has_a_corner_of_its_own() -> None:
    corners = draw_crops((200, 2), (96, 96), (48, 48), torch.Generator().manual_seed(0)).double()
    for one, other in ((corners[:, 0], corners[:, 1]), (corners[:-1, 0], corners[1:, 0])):
        for axis in (0, 1):
            correlation = torch.corrcoef(torch.stack([one[:, axis], other[:, axis]]))[0, 1]
            assert abs(float(correlation)) < 0.3  # four standard deviations
    assert abs(float(torch.corrcoef(corners[:, 0].T)[0, 1])) < 0.3, "rows and columns are drawn separately"


def test_corners_are_a_function_of_the_generator() -> None:
    first, again, other = (
        draw_crops((50, 2), (96, 96), (84, 84), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
