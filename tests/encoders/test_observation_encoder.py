"""The observation encoder: one vector per observation, the keys in the order of the configuration."""

from typing import Any

import pytest
import torch

from drift_policy.encoders import ObservationEncoder, ObservationSpec
from drift_policy.encoders.backbones import IMAGE_BACKBONES
from drift_policy.errors import ConfigurationError
from tests.helpers.image_policies import PIXELS, SMALL_CNN, PixelsConfig, camera


def pixels_encoder(specs: dict[str, ObservationSpec], n_obs_steps: int = 2) -> ObservationEncoder:
    """An encoder whose features of an image are its pixels in -1..1."""
    return ObservationEncoder(specs, n_obs_steps, PIXELS, PixelsConfig())


def cnn_encoder(specs: dict[str, ObservationSpec], n_obs_steps: int = 2) -> ObservationEncoder:
    return ObservationEncoder(specs, n_obs_steps, IMAGE_BACKBONES["small_cnn"], SMALL_CNN)


def random_images(batch: int, n_obs_steps: int = 2) -> torch.Tensor:
    return torch.randint(256, (batch, n_obs_steps, 3, 10, 12), dtype=torch.uint8)


def test_keys_of_a_step_lie_together_in_configuration_order() -> None:
    encoder = ObservationEncoder({"pose": ObservationSpec(shape=[3]), "goal": ObservationSpec(shape=[1])}, 2)
    pose, goal = torch.arange(12.0).reshape(2, 2, 3), torch.arange(100.0, 104.0).reshape(2, 2, 1)
    expected = torch.tensor([[0.0, 1, 2, 100, 3, 4, 5, 101], [6.0, 7, 8, 102, 9, 10, 11, 103]])
    assert torch.equal(encoder({"goal": goal, "pose": pose}), expected)
    assert encoder.output_size == 8


def test_one_key_alone_is_flattened() -> None:
    encoder = ObservationEncoder({"obs": ObservationSpec(shape=[4])}, 3)
    value = torch.randn(5, 3, 4)
    assert torch.equal(encoder({"obs": value}), value.reshape(5, 12))
    assert encoder.output_size == 12


def test_images_and_numbers_of_a_step_lie_together_in_configuration_order() -> None:
    grey = ObservationSpec(kind="image", shape=[1, 1, 2])
    encoder = pixels_encoder({"pose": ObservationSpec(shape=[1]), "eye": grey, "goal": ObservationSpec(shape=[2])})
    observations = {
        "goal": torch.arange(10.0, 18.0).reshape(2, 2, 2),
        "eye": torch.tensor([[[0, 255], [255, 0]], [[255, 255], [0, 0]]], dtype=torch.uint8).reshape(2, 2, 1, 1, 2),
        "pose": torch.arange(4.0).reshape(2, 2, 1),
    }
    expected = [[0.0, -1, 1, 10, 11, 1, 1, -1, 12, 13], [2.0, 1, 1, 14, 15, 3, -1, -1, 16, 17]]
    torch.testing.assert_close(encoder(observations), torch.tensor(expected))
    assert encoder.output_size == 10


def test_each_image_of_each_step_is_cropped_at_its_own_corner() -> None:
    encoder = pixels_encoder({"image": camera(crop=[8, 9])})
    images = random_images(3)
    crops = encoder.draw_crops(3, torch.Generator().manual_seed(1))
    assert list(crops) == ["image"] and crops["image"].shape == (3, 2, 2)
    assert len(crops["image"].flatten(0, 1).unique(dim=0)) > 3
    cut = torch.stack(
        [
            torch.stack([image[:, row : row + 8, left : left + 9] for image, (row, left) in zip(*steps, strict=True)])
            for steps in zip(images, crops["image"].tolist(), strict=True)
        ]
    )
    expected = cut.flatten(1).float() / 127.5 - 1
    torch.testing.assert_close(encoder({"image": images}, crops), expected)


@pytest.mark.parametrize("training", [False, True])
def test_without_crops_the_centre_is_seen(training: bool) -> None:
    encoder = pixels_encoder({"image": camera(crop=[8, 9])}).train(training)
    images = random_images(3)
    expected = images[..., 1:9, 1:10].flatten(1).float() / 127.5 - 1
    torch.testing.assert_close(encoder({"image": images}), expected)


def test_only_cropped_images_have_crops() -> None:
    specs = {"wide": camera(), "near": camera(crop=[8, 9]), "pose": ObservationSpec(shape=[2])}
    assert list(cnn_encoder(specs).draw_crops(3, None)) == ["near"]


def test_the_output_size_is_that_of_the_features() -> None:
    encoder = cnn_encoder({"image": camera(), "pose": ObservationSpec(shape=[2])}, n_obs_steps=3)
    condition = encoder({"image": random_images(5, 3), "pose": torch.zeros(5, 3, 2)})
    assert condition.shape == (5, encoder.output_size) == (5, 3 * (SMALL_CNN.feature_size + 2))


def test_numbers_keep_their_precision_beside_features_of_less() -> None:
    encoder = cnn_encoder({"image": camera(), "pose": ObservationSpec(shape=[2])})
    pose = torch.rand(3, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.backbones["image"](torch.zeros(1, 3, 10, 12)).dtype == torch.bfloat16
        condition = encoder({"image": random_images(3), "pose": pose})
    assert condition.dtype == torch.float32
    assert torch.equal(condition.unflatten(1, (2, -1))[:, :, -2:], pose)


def test_images_need_a_backbone() -> None:
    with pytest.raises(ConfigurationError, match=r"The images \['image'\] need an image backbone"):
        ObservationEncoder({"image": camera()}, 2)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("cameras.front", r"'cameras\.front' cannot be used: keys must not be empty or hold dots"),
        ("", r"'' cannot be used: keys must not be empty or hold dots"),
        ("values", r"'values' is a name PyTorch uses itself"),
        ("training", r"'training' is a name PyTorch uses itself"),
    ],
)
def test_a_key_that_no_module_may_have_is_named(key: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pixels_encoder({key: camera()})


def test_numbers_may_have_keys_that_no_module_may_have() -> None:
    value = torch.randn(3, 2, 4)
    assert torch.equal(
        ObservationEncoder({"values": ObservationSpec(shape=[4])}, 2)({"values": value}), value.flatten(1)
    )


@pytest.mark.parametrize("backbone", IMAGE_BACKBONES)
def test_every_backbone_reads_the_smallest_image(backbone: str) -> None:
    kind: Any = IMAGE_BACKBONES[backbone]
    specs = {"image": ObservationSpec(kind="image", shape=[1, 1, 1])}
    with torch.device("meta"):
        encoder = ObservationEncoder(specs, 2, kind, kind.config())
    assert encoder.output_size == 2 * 64
