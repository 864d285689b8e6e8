"""What every generator network promises: shapes, independence of samples, shared condition, errors."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from drift_policy.errors import ConfigurationError
from drift_policy.networks import (
    NETWORKS,
    ActionNetwork,
    ConditionalUnet1dConfig,
    MlpConfig,
    TransformerConfig,
    build_network,
    network_kind,
)

SMALL: dict[str, tuple[str, Any]] = {
    "mlp": ("mlp", MlpConfig(width=16, depth=2, diffusion_step_embed_dim=8)),
    "mlp_film": ("mlp", MlpConfig(width=16, depth=2, conditioning="film", layer_norm=True, diffusion_step_embed_dim=8)),
    "unet": ("conditional_unet1d", ConditionalUnet1dConfig(down_dims=[16, 32, 32], diffusion_step_embed_dim=8)),
    "unet_shift": ("conditional_unet1d", ConditionalUnet1dConfig(down_dims=[16], cond_predict_scale=False)),
    "transformer": ("transformer", TransformerConfig(n_layer=2, n_head=2, n_emb=16, condition_tokens=2)),
    "transformer_full": (
        "transformer",
        TransformerConfig(n_layer=1, n_head=1, n_emb=8, causal_attn=False, condition_tokens=2),
    ),
}
every_network = pytest.mark.parametrize("variant", SMALL)
with_and_without_time = pytest.mark.parametrize("timed", [False, True], ids=["one_step", "timed"])


@dataclass
class Sizes:
    B: int = 3
    G: int = 4
    Tp: int = 6
    Da: int = 2
    C: int = 8


def build(variant: str, timed: bool, sizes: Sizes) -> ActionNetwork:
    torch.manual_seed(0)
    name, config = SMALL[variant]
    network = build_network(
        name, config, horizon=sizes.Tp, action_dim=sizes.Da, condition_dim=sizes.C, time_conditioned=timed
    )
    with torch.no_grad():  # layers that start at zero would hide an influence
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def draw(timed: bool, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor | None]:
    sample = torch.randn(sizes.B, sizes.G, sizes.Tp, sizes.Da)
    time = 1000.0 * torch.rand(sizes.B, sizes.G) if timed else None
    return sample, torch.randn(sizes.B, sizes.C), time


@every_network
@with_and_without_time
@settings(max_examples=12)
@given(
    sizes=st.builds(
        Sizes,
        B=st.integers(1, 3),
        G=st.integers(1, 3),
        Tp=st.integers(1, 20),
        Da=st.integers(1, 4),
        C=st.sampled_from([2, 4, 10]),
    )
)
def test_output_is_a_finite_chunk_per_sample(variant: str, timed: bool, sizes: Sizes) -> None:
    output = build(variant, timed, sizes)(*draw(timed, sizes))
    assert output.shape == (sizes.B, sizes.G, sizes.Tp, sizes.Da)
    assert output.isfinite().all()


@every_network
@with_and_without_time
def test_gradient_reaches_every_parameter_and_input(variant: str, timed: bool) -> None:
    network, (sample, condition, time) = build(variant, timed, Sizes()), draw(timed, Sizes())
    inputs = [sample.requires_grad_(), condition.requires_grad_()]
    network(sample, condition, time).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(value.grad is not None and (value.grad != 0).all() for value in inputs)


@every_network
@with_and_without_time
def test_a_sample_sees_only_its_own_noise_and_time(variant: str, timed: bool) -> None:
    network, (sample, condition, time) = build(variant, timed, Sizes()), draw(timed, Sizes())
    before = network(sample, condition, time)
    other_sample = sample.clone()
    other_sample[:, 2] += 1.0
    others = [network(other_sample, condition, time)]
    if time is not None:
        other_time = time.clone()
        other_time[:, 2] = 1000.0 - other_time[:, 2]
        others.append(network(sample, condition, other_time))
    untouched = [0, 1, 3]
    for after in others:
        torch.testing.assert_close(after[:, untouched], before[:, untouched])
        assert ((after[:, 2] - before[:, 2]).abs().flatten(1).amax(1) > 1e-4).all()


@every_network
@with_and_without_time
def test_samples_together_equal_samples_one_by_one(variant: str, timed: bool) -> None:
    network, (sample, condition, time) = build(variant, timed, Sizes()), draw(timed, Sizes())
    together = network(sample, condition, time)
    for b in range(sample.shape[0]):
        for g in range(sample.shape[1]):
            one_time = None if time is None else time[b : b + 1, g : g + 1]
            one = network(sample[b : b + 1, g : g + 1], condition[b : b + 1], one_time)
            torch.testing.assert_close(one[0, 0], together[b, g], rtol=1e-4, atol=1e-5)


@every_network
def test_condition_costs_the_same_for_any_number_of_samples(variant: str) -> None:
    def flops(n_samples: int, condition_dim: int) -> int:
        sizes = Sizes(G=n_samples, C=condition_dim)
        network = build(variant, False, sizes)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*draw(False, sizes))
        return counter.get_total_flops()

    cost_of_condition = [flops(n_samples, 64) - flops(n_samples, 8) for n_samples in (1, 4)]
    assert cost_of_condition[0] == cost_of_condition[1] > 0


@every_network
@with_and_without_time
def test_state_dict_round_trip_and_evaluation_are_exact(variant: str, timed: bool) -> None:
    network, inputs = build(variant, timed, Sizes()), draw(timed, Sizes())
    output = network(*inputs)
    assert torch.equal(network(*inputs), output)
    name, config = SMALL[variant]
    fresh = build_network(name, config, horizon=6, action_dim=2, condition_dim=8, time_conditioned=timed).eval()
    assert not torch.allclose(fresh(*inputs), output)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(*inputs), output)


@every_network
def test_integer_time_equals_float_time(variant: str) -> None:
    network, (sample, condition, _) = build(variant, True, Sizes()), draw(True, Sizes())
    time = torch.randint(0, 100, (3, 4))
    assert torch.equal(network(sample, condition, time), network(sample, condition, time.float()))


@every_network
def test_wrong_inputs_are_named(variant: str) -> None:
    sample, condition, time = draw(True, Sizes())
    one_step, timed = build(variant, False, Sizes()), build(variant, True, Sizes())
    with pytest.raises(ValueError, match="time is given"):
        one_step(sample, condition, time)
    with pytest.raises(ValueError, match="time is missing"):
        timed(sample, condition)
    with pytest.raises(ValueError, match="time has shape"):
        timed(sample, condition, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"sample has shape .*expected \[B, G, 6, 2\]"):
        one_step(sample[:, :, :5], condition)
    with pytest.raises(ValueError, match=r"sample has shape"):
        one_step(sample[:, 0], condition)
    with pytest.raises(ValueError, match=r"condition has shape .*expected \[3, 8\]"):
        one_step(sample, condition[:1])


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'unet'; choose one of: mlp, conditional_unet1d, transformer"):
        network_kind("unet")


def test_configuration_of_another_network_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'mlp' was given a TransformerConfig"):
        build_network("mlp", TransformerConfig(), horizon=4, action_dim=2, condition_dim=3, time_conditioned=False)


@pytest.mark.parametrize("size", ["horizon", "action_dim", "condition_dim"])
def test_sizes_below_one_are_refused(size: str) -> None:
    sizes = {"horizon": 4, "action_dim": 2, "condition_dim": 3} | {size: 0}
    with pytest.raises(ConfigurationError, match=size):
        build_network("mlp", MlpConfig(), **sizes, time_conditioned=False)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mlp", {"width": 0}, "width"),
        ("mlp", {"depth": 0}, "depth"),
        ("mlp", {"conditioning": "add"}, "choose 'concat' or 'film'"),
        ("mlp", {"dropout": 1.0}, "dropout"),
        ("mlp", {"diffusion_step_embed_dim": 7}, "diffusion_step_embed_dim"),
        ("conditional_unet1d", {"down_dims": []}, "down_dims is empty"),
        ("conditional_unet1d", {"down_dims": [256, 500]}, "multiple of n_groups=8"),
        ("conditional_unet1d", {"down_dims": [8]}, "at least 16"),
        ("conditional_unet1d", {"kernel_size": 4}, "odd"),
        ("conditional_unet1d", {"n_groups": 0}, "n_groups"),
        ("conditional_unet1d", {"diffusion_step_embed_dim": 2}, "diffusion_step_embed_dim"),
        ("transformer", {"n_layer": 0}, "n_layer"),
        ("transformer", {"n_head": 3}, "divisible by n_head"),
        ("transformer", {"n_emb": 9, "n_head": 3}, "even"),
        ("transformer", {"p_drop_emb": -0.1}, "p_drop_emb"),
        ("transformer", {"p_drop_attn": 1.5}, "p_drop_attn"),
        ("transformer", {"condition_tokens": 0}, "condition_tokens"),
    ],
)
def test_impossible_settings_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        network_kind(name).config(**values)


@pytest.mark.parametrize("name", NETWORKS)
def test_configuration_survives_omegaconf(name: str) -> None:
    config = network_kind(name).config()
    restored = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(type(config)), OmegaConf.structured(config)))
    assert restored == config
