"""Parity with Diffusion Policy: results of U-Net and transformer, parameter counts of both and of its image policy."""

import numpy as np
import pytest
import torch
from torch import nn

from drift_policy import PolicyConfig, build_policy
from drift_policy.encoders import ObservationSpec
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import (
    ActionNetwork,
    ConditionalUnet1d,
    ConditionalUnet1dConfig,
    Transformer,
    TransformerConfig,
)

# Every ninth number of what transcriptions of Diffusion Policy's ConditionalUnet1D (commit 0dbd09b5, by
# cond_predict_scale) and TransformerForDiffusion (commit 4bf419aa, by causal_attn) return for the parameters and inputs
# that `reference_run` draws in the same order.
UNET_REFERENCE = {
    True: [-0.95137, 0.03945, -0.71245, 0.32733, -0.68517, 0.52247, -0.50596, 0.36013],
    False: [-0.21794, -0.14299, 0.1417, 0.39321, -1.20547, 0.11088, -0.49366, 0.35242],
}
TRANSFORMER_REFERENCE = {
    True: [-0.89864, -1.09533, -0.83048, -0.99068, -1.11264, -0.96275, -1.08557, -0.9898],
    False: [-0.89811, -1.06972, -0.82332, -0.95919, -1.11546, -0.93833, -1.08736, -0.992],
}


def reference_run(network: ActionNetwork) -> torch.Tensor:
    """Return every ninth number of the network's result for parameters and inputs from a fixed stream."""
    rng = np.random.RandomState(0)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)) / fan_in**0.5).float()
    sample = torch.from_numpy(rng.standard_normal((2, 2, 8, 2))).float()
    condition = torch.from_numpy(rng.standard_normal((2, 6))).float()
    output: torch.Tensor = network(sample, condition, torch.tensor([[0.0, 7.0], [99.0, 1.0]]))
    return output.flatten()[::9]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("predict_scale", [True, False])
def test_unet_returns_what_diffusion_policys_does(predict_scale: bool) -> None:
    config = ConditionalUnet1dConfig([16, 32, 64], diffusion_step_embed_dim=16, cond_predict_scale=predict_scale)
    network = ConditionalUnet1d(config, horizon=8, action_dim=2, condition_dim=6, time_conditioned=True)
    expected = torch.tensor(UNET_REFERENCE[predict_scale])
    torch.testing.assert_close(reference_run(network), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_transformer_returns_what_diffusion_policys_does(causal: bool) -> None:
    config = TransformerConfig(n_layer=2, n_head=2, n_emb=16, causal_attn=causal, condition_tokens=3)
    network = Transformer(config, horizon=8, action_dim=2, condition_dim=6, time_conditioned=True).eval()
    expected = torch.tensor(TRANSFORMER_REFERENCE[causal])
    torch.testing.assert_close(reference_run(network), expected, rtol=1e-3, atol=1e-4)


def unet_parameters_by_hand(
    dims: list[int], step_dim: int, condition_dim: int, action_dim: int = 2, kernel: int = 5
) -> int:
    def block(n_in: int, n_out: int) -> int:
        convolutions = kernel * n_in * n_out + n_out + kernel * n_out * n_out + n_out
        norms = 4 * n_out
        film = (step_dim + condition_dim + 1) * 2 * n_out
        skip = (n_in + 1) * n_out if n_in != n_out else 0
        return convolutions + norms + film + skip

    step_encoder = (step_dim + 1) * 4 * step_dim + (4 * step_dim + 1) * step_dim if step_dim else 0
    down = sum(block(a, b) + block(b, b) for a, b in zip([action_dim, *dims[:-1]], dims, strict=True))
    downsample = sum(3 * dim * dim + dim for dim in dims[:-1])
    middle = 2 * block(dims[-1], dims[-1])
    up = sum(block(2 * b, a) + block(a, a) for a, b in zip(dims[:-1], dims[1:], strict=True))
    upsample = sum(4 * dim * dim + dim for dim in dims[:-1])
    final = kernel * dims[0] ** 2 + 3 * dims[0] + (dims[0] + 1) * action_dim
    return step_encoder + down + downsample + middle + up + upsample + final


@pytest.mark.parametrize(
    ("dims", "step_dim", "condition_dim", "expected"),
    [
        ([256, 512, 1024], 256, 2 * 20, 65_783_298),  # Push-T state, Diffusion Policy's low-dimensional settings
        ([512, 1024, 2048], 256, 2 * 20, 252_937_986),  # Push-T state, settings of the drifting-policy paper
        ([512, 1024, 2048], 128, 2 * 66, 251_511_938),  # Push-T image: the 2.515e8 of Diffusion Policy's training log
    ],
)
def test_unet_parameter_count_equals_diffusion_policys(
    dims: list[int], step_dim: int, condition_dim: int, expected: int
) -> None:
    config = ConditionalUnet1dConfig(dims, diffusion_step_embed_dim=step_dim)
    with torch.device("meta"):
        timed, one_step = (
            ConditionalUnet1d(config, horizon=16, action_dim=2, condition_dim=condition_dim, time_conditioned=flag)
            for flag in (True, False)
        )
    assert count(timed) == expected == unet_parameters_by_hand(dims, step_dim, condition_dim)
    assert count(one_step) == unet_parameters_by_hand(dims, 0, condition_dim)


def test_image_policy_is_as_large_as_diffusion_policys() -> None:
    """Push-T from images: the numbers of its training log are 2.515e8 for the network and 1.1197e7 for the encoder."""
    observations = {
        "image": ObservationSpec(kind="image", shape=[3, 96, 96], crop=[84, 84]),
        "agent_pos": ObservationSpec(shape=[2]),
    }
    unet = ConditionalUnet1dConfig([512, 1024, 2048], diffusion_step_embed_dim=128)
    shared = {"observations": observations, "network_name": "conditional_unet1d", "network": unet}
    with torch.device("meta"):
        diffusion = build_policy(
            PolicyConfig(action_dim=2, head_name="diffusion", head=DiffusionHeadConfig(), **shared)  # type: ignore[arg-type]
        )
        drift = build_policy(PolicyConfig(action_dim=2, head=DriftHeadConfig(), **shared))  # type: ignore[arg-type]
    assert diffusion.encoder.output_size == 2 * (64 + 2) == 132
    assert count(diffusion.encoder) == count(drift.encoder) == 11_197_088
    assert count(diffusion.head) == 251_511_938
    assert count(diffusion) == 251_511_938 + 11_197_088
    assert count(drift.head) == unet_parameters_by_hand([512, 1024, 2048], 0, 132)


def test_transformer_parameter_count_equals_diffusion_policys() -> None:
    n_emb, layers, tokens = 256, 8, 2
    attention, norm = 4 * n_emb * (n_emb + 1), 2 * n_emb
    perceptron = (n_emb + 1) * 4 * n_emb + (4 * n_emb + 1) * n_emb
    positions = (16 + 1 + tokens) * n_emb
    projections = (2 + 1) * n_emb + (20 + 1) * n_emb + (n_emb + 1) * 2
    by_hand = positions + projections + perceptron + layers * (2 * attention + perceptron + 3 * norm) + norm
    with torch.device("meta"):
        network = Transformer(
            TransformerConfig(condition_tokens=2), horizon=16, action_dim=2, condition_dim=40, time_conditioned=True
        )
    assert count(network) == by_hand == 8_965_122
