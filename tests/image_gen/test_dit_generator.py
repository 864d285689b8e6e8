"""The generator: parity with recorded outputs, sizes, the condition, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from drift_policy.errors import ConfigurationError
from image_gen import load_generator
from image_gen.models import GENERATOR_SIZES, DiTConfig, build_generator
from image_gen.models.embeddings import apply_rotary, rotary_angles, sincos_positions
from tests.helpers.image_models import GOLDEN, channels_first, recorded, small_generator

CASES = ("latent_tiny", "plain_dit_tiny")


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(batch, 3, 8, 8),
        torch.randint(5, (batch,)),
        1 + 3 * torch.rand(batch),
        torch.randint(6, (batch, 3)),
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_the_recorded_generator(case: str) -> None:
    generator = load_generator(GOLDEN / "generator" / case)
    forward = recorded(f"generator/{case}/forward.npz")
    ids, scale, labels = (torch.from_numpy(forward[k]) for k in ("class_ids", "cfg_scale", "noise_labels"))
    with torch.no_grad():
        samples = generator(channels_first(forward["noise"]), ids, scale, labels)
    np.testing.assert_allclose(samples.numpy(), channels_first(forward["samples"]).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "millions"), [("latent_B", 133), ("latent_L", 463), ("pixel_B", 134), ("pixel_L", 464)]
)
def test_sizes_have_the_parameters_of_the_paper(size: str, millions: int) -> None:
    with torch.device("meta"):
        generator = build_generator(size)
    assert round(sum(parameter.numel() for parameter in generator.parameters()) / 1e6) == millions


@pytest.mark.parametrize("size", ["latent_tiny", "digits_tiny"])
def test_a_new_generator_gives_zeros_and_has_gradients(size: str) -> None:
    config = GENERATOR_SIZES[size]
    generator = build_generator(size)
    noise = torch.randn(2, config.in_channels, config.input_size, config.input_size)
    out = generator(noise, torch.tensor([0, 1]), 1.5)
    assert out.shape == (2, config.out_channels, config.input_size, config.input_size)
    assert torch.count_nonzero(out) == 0
    out.sum().backward()
    assert generator.final.linear.weight.grad is not None
    assert torch.count_nonzero(generator.final.linear.weight.grad) > 0


def test_every_input_matters() -> None:
    generator = small_generator()
    noise, ids, scale, labels = inputs()
    with torch.no_grad():
        out = generator(noise, ids, scale, labels)
        for changed in (
            (noise + 0.1, ids, scale, labels),
            (noise, (ids + 1) % 5, scale, labels),
            (noise, ids, scale + 1, labels),
            (noise, ids, scale, (labels + 1) % 6),
        ):
            assert not torch.allclose(generator(*changed), out, atol=1e-4)
        permuted = torch.tensor([2, 0, 3, 1])
        again = generator(noise[permuted], ids[permuted], scale[permuted], labels[permuted])
    torch.testing.assert_close(again, out[permuted])


def test_one_guidance_scale_serves_a_whole_batch() -> None:
    generator = small_generator()
    noise, ids, _, labels = inputs()
    with torch.no_grad():
        torch.testing.assert_close(
            generator(noise, ids, 1.5, labels), generator(noise, ids, torch.full((4,), 1.5), labels)
        )


def test_absent_styles_are_drawn() -> None:
    generator = small_generator()
    noise, ids, scale, _ = inputs()

    def draw(seed: int) -> torch.Tensor:
        with torch.no_grad():
            return generator(noise, ids, scale, generator=torch.Generator().manual_seed(seed))

    torch.testing.assert_close(draw(0), draw(0))
    assert not torch.allclose(draw(0), draw(1), atol=1e-4)
    labels = generator.draw_noise_labels(1000, "cpu", torch.Generator().manual_seed(0))
    assert labels.shape == (1000, 3)
    assert labels.unique().tolist() == list(range(6))


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        generator = small_generator()
        generator.activation_checkpointing = recompute
        generator(*inputs()).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in generator.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_bfloat16_autocast_stays_close() -> None:
    generator = small_generator()
    with torch.no_grad():
        exact = generator(*inputs())
        with torch.autocast("cpu", torch.bfloat16):
            rough = generator(*inputs())
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05 * float(exact.std()))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(4, 3, 8, 6), r"noise must have shape \[4, 3, 8, 8\], but has \[4, 3, 8, 6\]"),
        (1, torch.zeros(3, dtype=torch.long), r"class_ids must have shape \[4\]"),
        (1, torch.zeros(4), "class_ids must hold integers"),
        (1, torch.tensor([0, 1, 2, 5]), r"class_ids must be from 0 to 4, but are \[0, 1, 2, 5\]"),
        (3, torch.full((4, 3), -1), "noise_labels must be from 0 to 5"),
        (2, torch.ones(3), r"cfg_scale must have shape \[4\]"),
        (3, torch.zeros(4, 2, dtype=torch.long), r"noise_labels must have shape \[4, 3\]"),
    ],
)
def test_wrong_inputs_are_refused(position: int, value: torch.Tensor, message: str) -> None:
    arguments: list[Any] = list(inputs())
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        small_generator()(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 5}, "patch_size=5 must divide input_size=32"),
        ({"num_heads": 7}, "hidden_size=768 must be a multiple of"),
        ({"depth": 10**9}, "depth must be between 1 and 256"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be"),
        (
            {"input_size": 4096, "patch_size": 1, "hidden_size": 16384, "num_heads": 16},
            r"patch_size=1 make 16,777,216 tokens of hidden_size=16384, more than",
        ),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DiTConfig(**settings)


def test_unknown_sizes_and_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="latent_B, latent_L"):
        build_generator("B/2")
    with pytest.raises(ConfigurationError, match="no such setting.*width"):
        build_generator("digits_tiny", width=3)


def test_rotary_positions_are_relative() -> None:
    cos, sin = rotary_angles(12, 8, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 12, 8).unbind(0)
    products = (apply_rotary(q, (cos, sin)) @ apply_rotary(k, (cos, sin)).transpose(2, 3))[0, 0]
    for offset in (-3, 0, 5):
        torch.testing.assert_close(products.diagonal(offset), products.diagonal(offset)[:1].expand(12 - abs(offset)))


def test_positions_begin_as_different_sines_and_cosines() -> None:
    positions = sincos_positions(4, 16)[0]
    assert torch.unique(positions, dim=0).shape == (16, 16)
    torch.testing.assert_close(positions[:, :4] ** 2 + positions[:, 4:8] ** 2, torch.ones(16, 4))
    torch.testing.assert_close(positions[1, :8], positions[5, :8])  # same column
    torch.testing.assert_close(positions[1, 8:], positions[2, 8:])  # same row
