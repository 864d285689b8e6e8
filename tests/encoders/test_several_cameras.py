"""Several cameras: a network for each, or one for all of them."""

import pytest
import torch
from torch import Tensor, nn

from drift_policy.encoders import ObservationEncoder, ObservationSpec
from drift_policy.encoders.backbones import IMAGE_BACKBONES
from drift_policy.errors import ConfigurationError
from tests.helpers.image_policies import SMALL_CNN, camera
from tests.helpers.policies import CallCounter

FEATURES = SMALL_CNN.feature_size
B, TO = 3, 2


def make_encoder(share: bool, **cameras: ObservationSpec) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(cameras, TO, IMAGE_BACKBONES["small_cnn"], SMALL_CNN, share)


def random_images(height: int = 10, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (B, TO, 3, height, width), dtype=torch.uint8, generator=generator)


def features(encoder: ObservationEncoder, **images: Tensor) -> list[Tensor]:
    """Return the features [B, To, F] of each camera."""
    with torch.no_grad():
        return list(encoder(images).unflatten(1, (TO, -1)).split(FEATURES, dim=2))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_each_camera_has_its_own_weights() -> None:
    one, two = make_encoder(False, front=camera()), make_encoder(False, front=camera(), wrist=camera())
    assert list(two.backbones) == ["front", "wrist"]
    assert count(two) == 2 * count(one) > 0
    images = random_images()
    front, wrist = features(two, front=images, wrist=images)
    assert not torch.allclose(front, wrist, atol=1e-3)


def test_a_change_of_one_camera_changes_its_own_features_alone() -> None:
    for share in (False, True):
        encoder = make_encoder(share, front=camera(), wrist=camera(), left=camera())
        images = {key: random_images(seed=seed) for seed, key in enumerate(("front", "wrist", "left"))}
        before, after = features(encoder, **images), features(encoder, **images | {"wrist": random_images(seed=9)})
        changed = [not torch.allclose(one, other, atol=1e-5) for one, other in zip(before, after, strict=True)]
        assert changed == [False, True, False]


def test_shared_weights_are_those_of_one_camera() -> None:
    shared = make_encoder(True, front=camera(), wrist=camera(), left=camera())
    assert count(shared) == count(make_encoder(False, front=camera()))
    assert shared.output_size == TO * 3 * FEATURES
    images = random_images()
    one, other, third = features(shared, front=images, wrist=images, left=random_images(seed=1))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, third, atol=1e-3)


def test_shared_weights_see_all_cameras_in_one_call() -> None:
    encoder = make_encoder(True, front=camera(), wrist=camera(), left=camera())
    (backbone,) = encoder.backbones.values()
    counter = CallCounter(backbone)
    images = {key: random_images(seed=seed) for seed, key in enumerate(("left", "front", "wrist"))}
    together = features(encoder, **images)
    assert counter.rows == [3 * B * TO]
    for key, feature in zip(("front", "wrist", "left"), together, strict=True):
        seen = encoder.preprocessing[key](images[key].flatten(0, 1))
        torch.testing.assert_close(feature, backbone(seen).unflatten(0, (B, TO)).detach(), rtol=1e-4, atol=1e-5)


def test_own_weights_see_each_camera_once() -> None:
    encoder = make_encoder(False, front=camera(), wrist=camera())
    counters = [CallCounter(backbone) for backbone in encoder.backbones.values()]
    features(encoder, front=random_images(), wrist=random_images(seed=1))
    assert [counter.rows for counter in counters] == [[B * TO], [B * TO]]


def test_cameras_of_different_sizes_cannot_share() -> None:
    with pytest.raises(ConfigurationError, match=r"share_image_backbone=true .*'front': .*10, 12.*'wrist': .*9, 12"):
        make_encoder(True, front=camera(10, 12), wrist=camera(9, 12))
    depth = ObservationSpec(kind="image", shape=[1, 10, 12])
    with pytest.raises(ConfigurationError, match="cameras of one size after scaling and crop"):
        make_encoder(True, front=camera(10, 12), depth=depth)
    assert make_encoder(False, front=camera(10, 12), depth=depth).output_size == TO * 2 * FEATURES


def test_scaling_and_crop_make_different_cameras_alike() -> None:
    encoder = make_encoder(
        True, front=camera(10, 12), near=camera(12, 15, crop=[10, 12]), far=camera(20, 30, resize=[10, 12])
    )
    images = random_images()
    padded = torch.zeros(B, TO, 3, 12, 15, dtype=torch.uint8)
    padded[..., 1:11, 1:13] = images
    enlarged = images.repeat_interleave(2, dim=3)[..., :1].expand(-1, -1, -1, -1, 30)
    front, near, far = features(encoder, front=images, near=padded, far=enlarged)
    torch.testing.assert_close(front, near)
    assert far.shape == front.shape and not torch.allclose(front, far, atol=1e-3)


def test_one_camera_may_share_with_itself() -> None:
    images = random_images()
    shared, own = make_encoder(True, front=camera()), make_encoder(False, front=camera())
    assert torch.equal(features(shared, front=images)[0], features(own, front=images)[0])


def test_a_camera_of_any_name_keeps_its_own_weights() -> None:
    """The network that all cameras share has a name too, and a camera may be called the same."""
    shared_name = next(iter(make_encoder(True, front=camera()).backbones))
    encoder = make_encoder(False, **{shared_name: camera(), "wrist": camera(9, 9)})
    counters = [CallCounter(encoder.backbones[key]) for key in (shared_name, "wrist")]
    features(encoder, **{shared_name: random_images(), "wrist": random_images(9, 9)})
    assert [counter.rows for counter in counters] == [[B * TO], [B * TO]]
