"""The masked autoencoder: parity with recorded features and losses, masks, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from drift_policy.errors import ConfigurationError
from image_gen import load_mae
from image_gen.feature_maps import FeatureSettings
from image_gen.models import MAE_SIZES, MaeConfig, build_mae
from tests.helpers.image_models import MAE_ARTIFACT, channels_first, needs_mae_artifact, recorded, small_mae


@needs_mae_artifact
def test_features_equal_the_recorded_ones() -> None:
    mae = load_mae(MAE_ARTIFACT)
    activations = recorded("mae/latent_tiny/activations.npz")
    with torch.no_grad():
        features = mae.features(channels_first(recorded("mae/latent_tiny/forward.npz")["images"]))
    assert features.keys() == activations.keys()
    for name, expected in activations.items():
        np.testing.assert_allclose(features[name].numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=name)


@needs_mae_artifact
def test_losses_equal_the_recorded_ones() -> None:
    forward = recorded("mae/latent_tiny/forward.npz")
    with torch.no_grad():
        losses = load_mae(MAE_ARTIFACT).losses(
            channels_first(forward["images"]),
            torch.from_numpy(forward["labels"]),
            channels_first(forward["mask"]),
            float(forward["lambda_cls"]),
        )
    for ours, name in ((losses.total, "loss"), (losses.reconstruction, "recon_loss")):
        np.testing.assert_allclose(ours.numpy(), forward[name], rtol=1e-5)
    np.testing.assert_allclose(losses.classification.numpy(), forward["cls_loss"], rtol=1e-5)


def test_features_have_the_recorded_names_and_shapes() -> None:
    mae = build_mae("latent_tiny", num_classes=11)
    with torch.no_grad():
        features = mae.features(torch.randn(2, 4, 16, 16))
    shapes = {name: array.shape for name, array in recorded("mae/latent_tiny/activations.npz").items()}
    assert {name: tuple(value.shape) for name, value in features.items()} == shapes


def test_the_released_encoders_have_86_loss_terms() -> None:
    with torch.device("meta"):
        mae = build_mae("latent_256", base_channels=32)
        features = mae.features(torch.empty(1, 4, 32, 32))
    assert len(features) == 85  # and the input itself


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (FeatureSettings(0, False, False, [], []), {"norm_x", "conv1", "layer1", "layer2", "layer3", "layer4"}),
        (FeatureSettings(1, False, False, [], []), {"layer1_blk1", "layer2_blk1", "layer2_blk2"}),
        (FeatureSettings(2, False, True, [], [4]), {"layer2_blk2", "conv1_std", "conv1_std_4", "layer2_blk2_std"}),
    ],
)
def test_settings_choose_features(settings: FeatureSettings, expected: set[str]) -> None:
    features = small_mae().features(torch.randn(1, 3, 16, 16), settings)
    assert expected <= features.keys()
    assert not any("mean" in name for name in features)
    if not settings.every_k_block:
        assert features.keys() == expected


def test_only_masked_positions_are_reconstructed_and_hidden() -> None:
    mae = small_mae()
    x = torch.randn(2, 3, 16, 16)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:8, 4:8] = 1
    ids = torch.tensor([0, 1])
    with torch.no_grad():
        losses = mae.losses(x, ids, mask)
        error = (mae.reconstruct(x, mask) - x).square()
        torch.testing.assert_close(losses.reconstruction, error[:, :, 4:8, 4:8].sum(dim=(1, 2, 3)) / 16)
        torch.testing.assert_close(mae.reconstruct(x + 5 * mask, mask), mae.reconstruct(x, mask))
        assert not torch.allclose(mae.reconstruct(x + 5 * (1 - mask), mask), mae.reconstruct(x, mask), atol=1e-3)


def test_lambda_mixes_both_losses() -> None:
    mae = small_mae()
    x, ids = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 4])
    mask = mae.draw_mask(x, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, mixed = mae.losses(x, ids, mask, 0.0), mae.losses(x, ids, mask, 0.25)
    torch.testing.assert_close(whole.total, whole.reconstruction)
    torch.testing.assert_close(mixed.total, 0.75 * mixed.reconstruction + 0.25 * mixed.classification)
    with pytest.raises(ValueError, match="lambda_cls must be from 0 to 1"):
        mae.losses(x, ids, mask, 1.5)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_only_classification_makes_a_classifier(weight: float) -> None:
    mae = build_mae("digits_tiny", base_channels=4, layers=[1, 1, 1, 1])
    x, ids = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 4])
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        mae.losses(x, ids, mae.draw_mask(x), weight).total.mean().backward()
        optimizer.step()
    assert mae.has_classifier is (weight > 0)


def test_masks_hide_whole_patches_at_the_given_ratio() -> None:
    mae = small_mae(patch_size=2)
    masks = mae.draw_mask(torch.zeros(200, 3, 16, 16), 0.3, torch.Generator().manual_seed(0))
    assert masks.shape == (200, 1, 16, 16)
    patches = masks.unflatten(2, (8, 2)).unflatten(4, (8, 2))
    assert torch.equal(patches.amax(dim=(3, 5)), patches.amin(dim=(3, 5)))
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)


def test_pixels_are_folded_row_column_channel() -> None:
    mae = small_mae(input_patch_size=2)
    x = torch.arange(3 * 16 * 16, dtype=torch.float32).reshape(1, 3, 16, 16)
    folded = mae.fold(x)
    assert folded.shape == (1, 12, 8, 8)
    expected = torch.cat([x[:, :, row, column] for row in (0, 1) for column in (0, 1)], dim=1)
    torch.testing.assert_close(folded[:, :, 0, 0], expected)
    assert mae.draw_mask(x).shape == (1, 1, 8, 8)
    assert mae.reconstruct(x, mae.draw_mask(x)).shape == x.shape
    assert mae.features(x)["norm_x"].shape == (1, 1, 12)
    assert mae.classify(x).shape == (1, 5)


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (1, 3, 15, 16), (3, 16, 16)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\] with sides that are multiples of 2"):
        small_mae(input_patch_size=2).features(torch.zeros(shape))


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must have shape \[1, 1, 16, 16\], but has \[1, 1, 8, 8\]"):
        small_mae().losses(torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [1, 1]}, "layers must hold 4 numbers"),
        ({"layers": [1, 1, 1, 0]}, "layers must be between 1 and 256"),
        ({"dropout_prob": 1.0}, "dropout_prob must be"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MaeConfig(**settings)


def test_the_released_sizes() -> None:
    assert MAE_SIZES["pixel_640"] == MaeConfig(3, 640, [3, 4, 6, 3], 1000, 2, 8)
    assert MAE_SIZES["latent_256"] == MaeConfig(4, 256, [3, 4, 6, 3], 1000, 2, 1)
    with pytest.raises(ConfigurationError, match="latent_256"):
        build_mae("640")


def test_recomputed_blocks_keep_less_and_give_the_same_gradients() -> None:
    mae = small_mae(layers=[2, 2, 2, 2], dropout_prob=0.3).train()
    settings = FeatureSettings(every_k_block=0)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = {}
    for recompute in (False, True):
        mae.encoder.activation_checkpointing = recompute
        kept: list[int] = []
        images = x.clone().requires_grad_()
        mae.zero_grad()
        torch.manual_seed(2)  # of dropout
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t):
            loss = sum(feature.square().mean() for feature in mae.features(images, settings).values())
        loss.backward()
        gradients = [images.grad, *(p.grad for p in mae.encoder.parameters())]
        found[recompute] = (sum(kept), gradients)
    assert found[True][0] < 0.7 * found[False][0]
    for one, other in zip(found[False][1], found[True][1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
