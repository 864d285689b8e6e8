"""The residual MLP: its input layer, FiLM, dropout and size."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from drift_policy.networks import Mlp, MlpConfig
from drift_policy.networks.mlp import ResidualBlock

B, G, TP, DA, C = 5, 3, 4, 2, 7


def build(config: MlpConfig, timed: bool = False) -> Mlp:
    torch.manual_seed(0)
    return Mlp(config, horizon=TP, action_dim=DA, condition_dim=C, time_conditioned=timed)


def test_equals_a_plain_network_on_the_concatenated_input() -> None:
    network = build(MlpConfig(width=16, depth=2))
    first = nn.Linear(TP * DA + C, 16)
    weight = torch.cat([network.sample_projection.weight, network.condition_projection.weight], dim=1)
    first.load_state_dict({"weight": weight, "bias": network.condition_projection.bias})

    sample, condition = torch.randn(B, G, TP, DA), torch.randn(B, C)
    x = first(torch.cat([sample.reshape(B * G, -1), condition.repeat_interleave(G, dim=0)], dim=1))
    for block in network.blocks:
        assert isinstance(block, ResidualBlock)
        x = x + block.linear_out(functional.silu(block.linear_in(x)))
    expected = network.output(functional.silu(x)).reshape(B, G, TP, DA)
    torch.testing.assert_close(network(sample, condition), expected)


@pytest.mark.parametrize("timed", [False, True])
def test_film_starts_as_the_concat_network_and_then_modulates(timed: bool) -> None:
    concat, film = (build(MlpConfig(width=16, conditioning=kind), timed) for kind in ("concat", "film"))
    film.load_state_dict(concat.state_dict(), strict=False)
    inputs = [torch.randn(B, G, TP, DA), torch.randn(B, C)] + ([torch.rand(B, G)] if timed else [])
    torch.testing.assert_close(film(*inputs), concat(*inputs))
    assert film.film is not None
    nn.init.normal_(film.film.bias)
    assert not torch.allclose(film(*inputs), concat(*inputs), atol=1e-4)


def test_film_scale_of_minus_one_leaves_only_the_shift() -> None:
    network = build(MlpConfig(width=16, depth=1, conditioning="film"))
    shift = torch.randn(16)
    assert network.film is not None
    network.film.load_state_dict({"weight": torch.zeros(32, 16), "bias": torch.cat([-torch.ones(16), shift])})
    x, block = torch.randn(1, 1, 16), network.blocks[0]
    assert isinstance(block, ResidualBlock)
    expected = x + block.linear_out(shift)
    torch.testing.assert_close(block(x, network.film.bias.expand(1, 1, -1)), expected)


def test_layer_norm_makes_blocks_indifferent_to_scale() -> None:
    normed = build(MlpConfig(width=16, depth=1, layer_norm=True)).blocks[0]
    plain = build(MlpConfig(width=16, depth=1)).blocks[0]
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(normed(9 * x, None) - 9 * x, normed(x, None) - x, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain(9 * x, None) - 9 * x, plain(x, None) - x, atol=1e-2)


def test_dropout_acts_in_training_only() -> None:
    network = build(MlpConfig(width=16, dropout=0.5))
    sample, condition = torch.randn(B, G, TP, DA), torch.randn(B, C)
    assert not torch.equal(network(sample, condition), network(sample, condition))
    network.eval()
    assert torch.equal(network(sample, condition), network(sample, condition))


def test_first_chunks_lie_near_zero() -> None:
    network = build(MlpConfig())
    assert network(torch.randn(B, G, TP, DA), torch.randn(B, C)).abs().max() < 0.5


def test_default_size_for_push_t() -> None:
    with torch.device("meta"):
        network = Mlp(MlpConfig(), horizon=16, action_dim=2, condition_dim=40, time_conditioned=False)
    by_hand = (32 * 256) + (40 * 256 + 256) + 6 * 2 * (256 * 256 + 256) + (256 * 32 + 32)
    assert sum(p.numel() for p in network.parameters()) == by_hand == 816_416
