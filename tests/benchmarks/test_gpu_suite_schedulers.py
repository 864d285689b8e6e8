"""The tabulated schedulers give the samples of diffusers' schedulers, inside and outside of a diffusion head."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_suite.prepare import SAMPLERS, export_table
from benchmarks.gpu_suite.schedulers import TabulatedScheduler, tabulated_diffusion
from drift_policy.errors import ConfigurationError
from drift_policy.heads import HEADS
from drift_policy.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from tests.helpers.policies import tiny_obs, tiny_policy

SHAPE = (3, 2, 5, 2)
OTHERS = {
    "unclipped": DiffusionHeadConfig(clip_sample=False),
    "linear": DiffusionHeadConfig(beta_schedule="linear"),
    "skipping_ddpm": DiffusionHeadConfig(num_inference_steps=10),
    "ddim_100": DiffusionHeadConfig(sampler="ddim", num_inference_steps=100),
}
CONFIGS = SAMPLERS | OTHERS
TABLES = {name: export_table(config) for name, config in CONFIGS.items()}


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def generators(name: str) -> Any:
    """Equal generators: one for all observations, or one for each."""
    if name == "one":
        return torch.Generator().manual_seed(7)
    return [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("source", ["one", "one each"])
def test_every_step_is_that_of_diffusers(name: str, source: str) -> None:
    theirs, ours = DiffusionHead.make_scheduler(CONFIGS[name]), TabulatedScheduler(TABLES[name])
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    their_source, our_source = generators(source), generators(source)
    extra = {"generator": their_source} if CONFIGS[name].sampler == "ddpm" else {}
    for step in theirs.timesteps.tolist():
        # Chunks within the range of the demonstrations, so that clipping hides few of them.
        chunk, predicted = normal(step), normal(1000 + step)
        clean = 1.2 * normal(2000 + step).tanh()
        alpha = theirs.alphas_cumprod[step]
        chunk = alpha.sqrt() * clean + (1 - alpha).sqrt() * predicted
        expected = theirs.step(predicted, step, chunk, **extra).prev_sample
        result = ours.step(predicted, step, chunk, our_source).prev_sample
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_noise_is_added_as_by_diffusers(name: str) -> None:
    theirs, ours = DiffusionHead.make_scheduler(CONFIGS[name]), TabulatedScheduler(TABLES[name])
    for first in range(0, 99, 3):
        steps = torch.arange(first, first + 3)
        expected = theirs.add_noise(normal(0), normal(1), steps)
        torch.testing.assert_close(ours.add_noise(normal(0), normal(1), steps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_policy_decides_the_same_without_diffusers(name: str) -> None:
    ordinary = tiny_policy("diffusion", "conditional_unet1d", head_config=SAMPLERS[name])
    with tabulated_diffusion(TABLES):
        tabulated = tiny_policy("diffusion", "conditional_unet1d", head_config=SAMPLERS[name])
    assert isinstance(tabulated.head.scheduler, TabulatedScheduler)
    assert not isinstance(ordinary.head.scheduler, TabulatedScheduler)
    assert tabulated.state_dict().keys() == ordinary.state_dict().keys(), "the tables are no part of a checkpoint"
    actions = [
        policy.predict_action(tiny_obs(policy), generator=torch.Generator().manual_seed(3))["action_pred"]
        for policy in (ordinary, tabulated)
    ]
    torch.testing.assert_close(actions[0], actions[1], rtol=1e-5, atol=1e-3)  # of actions from 100 to 500


def test_ordinary_heads_come_back() -> None:
    before = HEADS["diffusion"]
    with pytest.raises(KeyError), tabulated_diffusion(TABLES):
        assert HEADS["diffusion"] is not before
        raise KeyError
    assert HEADS["diffusion"] is before


def test_a_sampler_without_table_is_refused() -> None:
    tables = {name: TABLES[name] for name in SAMPLERS}
    with tabulated_diffusion(tables), pytest.raises(ConfigurationError, match=r"tables of ddpm_100, ddim_16, but none"):
        tiny_policy("diffusion", head_config=OTHERS["skipping_ddpm"])
