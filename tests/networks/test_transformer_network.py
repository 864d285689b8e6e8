"""The transformer: parity with torch's decoder layer, causality, one memory per observation."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from drift_policy.errors import ConfigurationError
from drift_policy.networks import Transformer, TransformerConfig
from drift_policy.networks.transformer import DecoderLayer


def build(*, horizon: int = 6, condition_dim: int = 6, timed: bool = False, **settings: object) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(**({"n_layer": 2, "n_head": 2, "n_emb": 16} | settings))  # type: ignore[arg-type]
    return Transformer(config, horizon=horizon, action_dim=2, condition_dim=condition_dim, time_conditioned=timed)


def test_layer_equals_torchs_with_repeated_memory() -> None:
    batch, n_samples, horizon, tokens = 3, 4, 5, 2
    layer = DecoderLayer(TransformerConfig(n_head=2, n_emb=16)).eval()
    peer = nn.TransformerDecoderLayer(16, 2, 64, activation="gelu", batch_first=True, norm_first=True).eval()
    peer.load_state_dict(layer.state_dict())
    x, memory = torch.randn(batch * n_samples, horizon, 16), torch.randn(batch, tokens, 16)
    step_mask = torch.ones(horizon, horizon, dtype=torch.bool).triu(1)
    memory_mask = torch.arange(tokens) > torch.arange(horizon)[:, None]
    expected = peer(x, memory.repeat_interleave(n_samples, dim=0), tgt_mask=step_mask, memory_mask=memory_mask)
    result = layer(x, memory, step_mask, memory_mask.repeat(n_samples, 1))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_causal_steps_see_no_later_step_or_condition_token(causal: bool) -> None:
    network = build(causal_attn=causal, condition_tokens=3).eval()
    sample, condition = torch.randn(2, 3, 6, 2), torch.randn(2, 6)
    before = network(sample, condition)
    later_steps = torch.cat([sample[:, :, :2], torch.randn(2, 3, 4, 2)], dim=2)
    later_token = torch.cat([condition[:, :4], torch.randn(2, 2)], dim=1)
    for after in (network(later_steps, condition), network(sample, later_token)):
        assert torch.allclose(after[:, :, :2], before[:, :, :2], atol=1e-6) == causal
        assert not torch.allclose(after[:, :, 2:], before[:, :, 2:], atol=1e-6)


def test_memory_is_computed_once_per_observation() -> None:
    batch, tokens, n_emb, layers = 2, 3, 16, 2
    network = build(condition_tokens=tokens)

    def flops(n_samples: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.randn(batch, n_samples, 6, 2), torch.randn(batch, 6))
        return counter.get_total_flops()

    per_sample = flops(2) - flops(1)
    assert flops(5) - flops(1) == 4 * per_sample
    token_projection, encoder, keys_and_values = 2 * n_emb, 8 * n_emb**2, layers * 2 * n_emb**2
    assert flops(1) - per_sample == 2 * batch * tokens * (token_projection + encoder + keys_and_values)


def test_dropout_acts_in_training_only() -> None:
    network = build()
    sample, condition = torch.randn(2, 3, 6, 2), torch.randn(2, 6)
    assert not torch.equal(network(sample, condition), network(sample, condition))
    network.eval()
    assert torch.equal(network(sample, condition), network(sample, condition))


def test_condition_that_does_not_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="condition_tokens is 4, which does not divide .* 6 numbers"):
        build(condition_tokens=4)


@pytest.mark.parametrize("n_emb", [64, 256])
def test_an_untrained_one_step_network_hears_observation_and_noise(n_emb: int) -> None:
    """With Diffusion Policy's initial weights the observation moves the chunks far less than the noise does."""
    network = build(n_emb=n_emb, n_head=4, condition_tokens=2).eval()
    noise, conditions = torch.randn(1, 64, 6, 2), torch.randn(64, 6)
    with torch.no_grad():
        by_noise = network(noise, conditions[:1]).std(dim=1).mean()
        by_condition = network(noise[:, :1].expand(64, -1, -1, -1), conditions).std(dim=0).mean()
    assert 0.3 < by_condition / by_noise < 3
    assert 0.05 < by_noise < 0.25


def test_a_denoiser_starts_with_diffusion_policys_weights() -> None:
    network = build(n_emb=256, n_head=4, timed=True)
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    assert all(weight.std().item() == pytest.approx(0.02, rel=0.15) for weight in weights)
