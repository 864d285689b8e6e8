"""Captured decisions: errors without a GPU, the host's part with a stand-in for the graph, and equality on a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drift_policy import Policy, cuda_graph
from drift_policy.cuda_graph import GraphedPolicy
from drift_policy.errors import ConfigurationError
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.runtime.spec import describe_policy
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.policies import HEAD_NAMES, tiny_obs, tiny_policy

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs an NVIDIA GPU")


class HostInput:
    """Stands in for a place on the GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.on_device = torch.zeros(shape, dtype=dtype)

    def fill(self, value: Tensor) -> None:
        self.on_device.copy_(value)


def compute_again(decide: Callable[[], Tensor], generators: Any) -> tuple[Callable[[], None], Tensor]:
    """Stands in for a capture: the replay computes anew, from and to the same places."""
    result = decide()

    def replay() -> None:
        with torch.inference_mode():
            result.copy_(decide())

    return replay, result


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_require_gpu", lambda device: None)
    monkeypatch.setattr(cuda_graph, "_warm_up", lambda decide, device: decide())
    monkeypatch.setattr(cuda_graph, "_capture", compute_again)
    monkeypatch.setattr(cuda_graph, "_StaticInput", HostInput)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_policy_on_a_cpu_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ConfigurationError, match=r"needs an NVIDIA GPU, but the policy is on cpu: move it with policy\.to"
    ):
        GraphedPolicy(tiny_policy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, but is 'float16'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GraphedPolicy(tiny_policy(), **settings)


def test_a_policy_in_training_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"training mode: call policy\.eval\(\)"):
        GraphedPolicy(tiny_policy().train())


def check_decisions(policy: Policy) -> None:
    """Compare captured decisions with the policy's own, given the same noise."""
    graphed, device = GraphedPolicy(policy, batch_size=3), policy.device
    noise_shape = (3, *describe_policy(graphed).noise_shape)
    for seed in range(3):
        obs = tiny_obs(policy, seed=seed)
        noise = np.random.default_rng(seed).standard_normal(noise_shape).astype(np.float32)
        sources = [generator(10 * seed + i) for i in range(3)]
        # The generators inside the graph are seeded by one number from each of the given ones.
        seeds = [int(torch.randint(2**63 - 1, (), generator=source)) for source in sources]
        inner = [torch.Generator(device).manual_seed(inner_seed) for inner_seed in seeds]
        expected = policy.predict_action(obs, generator=inner, noise=noise, noise_scale=0.7)
        sources = [generator(10 * seed + i) for i in range(3)]
        result = graphed.predict_action(obs, generator=sources, noise=noise, noise_scale=0.7)
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(result[key], value, rtol=1e-4, atol=0.05)  # of actions from 100 to 500


@pytest.mark.parametrize("num_candidates", [1, 5])
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_decides_as_the_policy(head: str, num_candidates: int, without_gpu: None) -> None:
    check_decisions(tiny_policy(head, num_candidates=num_candidates))


def test_the_policys_candidates_are_captured(without_gpu: None) -> None:
    policy = tiny_policy(num_candidates=5)
    graphed, obs = GraphedPolicy(policy, batch_size=2), tiny_obs(policy, batch=2)
    expected = policy.predict_action(obs, generator=generator())["action_pred"]
    torch.testing.assert_close(graphed.predict_action(obs, generator=generator())["action_pred"], expected)
    noise = torch.randn(2, 6, 2, generator=generator())
    one = graphed.predict_action(obs, noise=noise)["action_pred"]
    torch.testing.assert_close(one, policy.predict_action(obs, noise=noise)["action_pred"], rtol=1e-5, atol=1e-3)
    with pytest.raises(ValueError, match=r"There are 3 candidates, but the graph was captured for 5: make another"):
        graphed.predict_action(obs, noise=torch.zeros(2, 3, 6, 2))


def test_one_noise_is_not_enough_for_a_mirrored_policy(without_gpu: None) -> None:
    policy = tiny_policy(num_candidates=4, mirrored=True)
    assert policy.mirror is not None
    features, action = torch.randn(99, policy.feature_size), torch.randn(99, policy.action_dim)
    policy.mirror.fit(features, -features, action, -action)
    graphed, obs = GraphedPolicy(policy, batch_size=2), tiny_obs(policy, batch=2)
    noise = torch.randn(2, 4, 6, 2)
    expected = policy.predict_action(obs, noise=noise)["action_pred"]
    torch.testing.assert_close(graphed.predict_action(obs, noise=noise)["action_pred"], expected)
    for one in (noise[:, 0], noise[:, :1]):
        with pytest.raises(ValueError, match=r"that of one candidate.* mirror image .*: give \[2, 4, 6, 2\]"):
            graphed.predict_action(obs, noise=one)


@pytest.mark.parametrize("head", ["drift", "ddim"])
def test_two_decisions_with_one_generator_take_the_numbers_that_the_policy_takes(head: str, without_gpu: None) -> None:
    ddim = DiffusionHeadConfig(sampler="ddim", num_train_steps=6, num_inference_steps=3)
    policy = tiny_policy("drift") if head == "drift" else tiny_policy("diffusion", head_config=ddim)
    graphed, (first, second) = GraphedPolicy(policy), (generator(), generator())
    obs = tiny_obs(policy, batch=1)
    for _ in range(3):
        expected = policy.predict_action(obs, generator=first)["action"]
        torch.testing.assert_close(graphed.predict_action(obs, generator=second)["action"], expected)


def test_noise_on_the_way_is_repeatable_and_of_each_observation_alone(without_gpu: None) -> None:
    policy = tiny_policy("diffusion")
    graphed, obs = GraphedPolicy(policy, batch_size=3), tiny_obs(policy)
    noise = torch.zeros(3, 6, 2)

    def decide(*seeds: int) -> Tensor:
        sources = [generator(seed) for seed in seeds]
        return graphed.predict_action(obs, generator=sources, noise=noise)["action_pred"]

    first, again, other = decide(1, 2, 3), decide(1, 2, 3), decide(4, 2, 3)
    assert torch.equal(first, again)
    assert torch.equal(first[1:], other[1:]) and not torch.equal(first[0], other[0])
    torch.manual_seed(0)
    unseeded = [graphed.predict_action(obs, noise=noise)["action_pred"] for _ in range(2)]
    assert not torch.equal(*unseeded), "every decision draws fresh noise"
    torch.manual_seed(0)
    assert torch.equal(graphed.predict_action(obs, noise=noise)["action_pred"], unseeded[0])


def test_a_result_is_not_overwritten_by_the_next_decision(without_gpu: None) -> None:
    policy = tiny_policy()
    graphed = GraphedPolicy(policy)
    first = graphed.predict_action(tiny_obs(policy, 1, seed=0), noise_scale=0.0)["action"]
    kept = first.clone()
    assert not torch.equal(graphed.predict_action(tiny_obs(policy, 1, seed=1), noise_scale=0.0)["action"], kept)
    assert torch.equal(first, kept)


def test_images_and_numbers_reach_the_graph(without_gpu: None) -> None:
    policy = tiny_image_policy()
    graphed = GraphedPolicy(policy, batch_size=2)
    for seed in (0, 1):
        obs = tiny_obs(policy, 2, seed)
        expected = policy.predict_action(obs, noise_scale=0.0)["action"]
        torch.testing.assert_close(graphed.predict_action(obs, noise_scale=0.0)["action"], expected)
    floats = obs | {"image": obs["image"] / 255}
    with pytest.raises(
        ValueError, match=r"obs\['image'\] is an image of torch.float32, but a captured graph reads uint8"
    ):
        graphed.predict_action(floats)


def test_wrong_observations_are_refused_before_anything_runs(without_gpu: None) -> None:
    policy = tiny_policy()
    graphed = GraphedPolicy(policy, batch_size=2)
    with pytest.raises(ValueError, match=r"obs\['obs'\] has batch size 3, but the graph was captured for 2"):
        graphed.predict_action(tiny_obs(policy, batch=3))
    with pytest.raises(ValueError, match="lacks the key 'obs'"):
        graphed.predict_action({})
    with pytest.raises(ValueError, match="holds NaN"):
        graphed.predict_action({"obs": torch.full((2, 2, 5), torch.nan)})
    with pytest.raises(ValueError, match=r"noise must have shape \[2, 6, 2\]"):
        graphed.predict_action(tiny_obs(policy, batch=2), noise=torch.zeros(1, 6, 2))


def test_bfloat16_is_autocast(without_gpu: None) -> None:
    policy = tiny_policy()
    obs = tiny_obs(policy, 1)
    expected = policy.predict_action(obs, noise_scale=0.0)["action"]
    rough = GraphedPolicy(policy, precision="bfloat16").predict_action(obs, noise_scale=0.0)["action"]
    assert rough.dtype == expected.dtype and not torch.equal(rough, expected)
    torch.testing.assert_close(rough, expected, rtol=0.02, atol=4.0)  # of actions from 100 to 500


@NEEDS_GPU
@pytest.mark.parametrize("num_candidates", [1, 16])
@pytest.mark.parametrize("network", ["mlp", "conditional_unet1d", "transformer"])
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_a_replayed_graph_decides_as_the_policy_does_on_the_gpu(head: str, network: str, num_candidates: int) -> None:
    check_decisions(tiny_policy(head, network, num_candidates=num_candidates).to("cuda"))


@NEEDS_GPU
def test_a_replayed_graph_reads_images_on_the_gpu() -> None:
    policy = tiny_image_policy().to("cuda")
    graphed = GraphedPolicy(policy, batch_size=2)
    for seed in range(3):
        obs = tiny_obs(policy, 2, seed)
        expected = policy.predict_action(obs, noise_scale=0.0)["action"]
        torch.testing.assert_close(
            graphed.predict_action(obs, noise_scale=0.0)["action"], expected, rtol=1e-4, atol=0.05
        )
        on_gpu = {key: value.to("cuda") for key, value in obs.items()}
        torch.testing.assert_close(
            graphed.predict_action(on_gpu, noise_scale=0.0)["action"], expected, rtol=1e-4, atol=0.05
        )
