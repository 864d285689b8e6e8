"""A policy with a mirror answers the mirror image of an observation with the mirror image of its answer, everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from drift_policy import Policy, load_policy
from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.normalizer import Normalizer
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.symmetry import with_mirror_images
from drift_policy.encoders import ObservationSpec
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.hub import push_policy
from drift_policy.mirror import fit_mirror
from drift_policy.runtime.export import export_policy
from drift_policy.runtime.onnx_policy import OnnxPolicy
from drift_policy.runtime.spec import describe_policy
from drift_policy.runtime.timed_policy import TimedPolicy
from drift_policy.training.run import train
from tests.helpers.point_task import point_training
from tests.helpers.policies import tiny_config, tiny_normalizer, tiny_obs, tiny_policy

BATCH, N = 4, 8  # of fewer candidates two can be each other's nearest, and then the order decides


def mirrored_policy(head: str = "drift") -> Policy:
    """A policy whose mirror turns the sign of all normalised numbers."""
    policy = tiny_policy(head, num_candidates=N, mirrored=True)
    assert policy.mirror is not None
    features, action = torch.randn(200, policy.feature_size), torch.randn(200, policy.action_dim)
    policy.mirror.fit(features, -features, action, -action)
    return policy.eval()


def image_of(policy: Policy, key: str, value: Tensor) -> Tensor:
    return policy.normalizer.unnormalize(key, -policy.normalizer.normalize(key, value))


@pytest.mark.parametrize("head", ["drift", "diffusion", "flow"])
def test_the_answer_in_the_mirror_is_the_answer_mirrored(head: str) -> None:
    policy = mirrored_policy(head)
    obs = tiny_obs(policy, BATCH)
    noise = torch.randn(BATCH, N, policy.horizon, policy.action_dim)
    swapped = torch.cat([noise[:, N // 2 :], noise[:, : N // 2]], dim=1)
    image = {key: image_of(policy, key, value) for key, value in obs.items()}
    generators = (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    answer = policy.predict_action(obs, noise=noise, generator=generators[0])["action_pred"]
    if head != "diffusion":  # which draws on the way, in the order of the candidates
        other = policy.predict_action(image, noise=swapped, generator=generators[1])["action_pred"]
        torch.testing.assert_close(image_of(policy, "action", other), answer, atol=2e-3, rtol=1e-4)
    alone = policy.predict_action(obs, noise=noise, generator=generators[1], mirrored=False)["action_pred"]
    assert not torch.allclose(alone, answer, atol=1e-2)


def test_every_observation_has_its_own_generator_and_one_candidate_is_not_mirrored() -> None:
    policy = mirrored_policy("diffusion")
    obs = tiny_obs(policy, BATCH)
    sources = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
    together = policy.predict_action(obs, generator=sources)["action_pred"]
    for row in range(BATCH):
        part = {key: value[row : row + 1] for key, value in obs.items()}
        single = policy.predict_action(part, generator=[torch.Generator().manual_seed(row)])["action_pred"]
        torch.testing.assert_close(single, together[row : row + 1], atol=2e-3, rtol=1e-4)
    noise = torch.randn(BATCH, policy.horizon, policy.action_dim)
    drift = mirrored_policy()
    own = drift.predict_action(obs, noise=noise)["action_pred"]
    assert torch.equal(own, drift.predict_action(obs, noise=noise, mirrored=False)["action_pred"])


def test_the_mirror_travels_with_checkpoint_and_exported_file(tmp_path: Path) -> None:
    policy = mirrored_policy()
    obs = tiny_obs(policy, BATCH)
    noise = torch.randn(BATCH, N, policy.horizon, policy.action_dim)
    expected = policy.predict_action(obs, noise=noise)["action_pred"]
    loaded = load_policy(policy.save_pretrained(tmp_path / "saved"))
    assert torch.equal(loaded.predict_action(obs, noise=noise)["action_pred"], expected)
    assert torch.equal(TimedPolicy(loaded).predict_action(obs, noise=noise)["action_pred"], expected)
    assert export_policy(policy, tmp_path / "policy.pt2", "pt2") < 1e-5
    pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")
    assert export_policy(policy, tmp_path / "policy.onnx") < 1e-5
    run, arrays = OnnxPolicy(tmp_path / "policy.onnx"), {key: value.numpy() for key, value in obs.items()}
    assert run.spec == describe_policy(policy) and run.spec.mirrored
    found = run.predict_action(arrays, noise=noise.numpy())["action_pred"]
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=2e-3, rtol=1e-4)
    with pytest.raises(ValueError, match=r"noise has shape \[4, 6, 2\], that of one candidate.*: give \[4, 8, 6, 2\]"):
        run.predict_action(arrays, noise=noise[:, 0].numpy())


def test_a_file_of_one_candidate_is_not_mirrored(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")
    policy = mirrored_policy()
    export_policy(policy, tmp_path / "policy.onnx", num_candidates=1)
    run, obs = OnnxPolicy(tmp_path / "policy.onnx"), tiny_obs(policy, BATCH)
    noise = torch.randn(BATCH, policy.horizon, policy.action_dim)
    found = run.predict_action({key: value.numpy() for key, value in obs.items()}, noise=noise.numpy())["action_pred"]
    expected = policy.predict_action(obs, noise=noise)["action_pred"]
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=2e-3, rtol=1e-4)
    assert not run.spec.mirrored


def test_another_normaliser_unsets_the_mirror(tmp_path: Path) -> None:
    policy = mirrored_policy()
    assert policy.mirror is not None
    policy.set_normalizer(tiny_normalizer(policy.config))  # the same maps
    assert policy.mirror.is_fitted
    policy.set_normalizer(Normalizer.fit({"obs": torch.randn(9, 5), "action": torch.randn(9, 2)}))
    assert not policy.mirror.is_fitted and bool(policy.mirror.action_matrix.isnan().all())
    with pytest.raises(CheckpointError, match=r"has no mirror yet: .*mirror\.fit_mirror\(policy, windows\)"):
        policy.predict_action(tiny_obs(policy, 1))
    with pytest.raises(CheckpointError, match="has no mirror yet"):
        policy.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub of the hub extra")
    with pytest.raises(CheckpointError, match="has no mirror yet"):
        push_policy(policy, "owner/name")


def windows_of(buffer: ReplayBuffer) -> WindowDataset:
    observations = {"state": [Column("state")], "obs": [Column("obs")]}
    return WindowDataset(buffer, observations, [Column("action")], horizon=6, n_obs_steps=2, n_action_steps=3)


def test_the_mirror_is_fitted_to_normalised_numbers_in_the_order_of_the_policys_keys() -> None:
    rng = np.random.default_rng(0)
    columns = {"obs": 5, "state": 3, "action": 2}
    data = {name: (7 + 3 * rng.standard_normal((200, size))).astype(np.float32) for name, size in columns.items()}
    buffer = with_mirror_images(
        ReplayBuffer(data, np.array([80, 200])), lambda given: {k: 9 - v[:, ::-1] for k, v in given.items()}
    )
    windows = windows_of(buffer)
    policy = tiny_policy(num_candidates=N, mirrored=True, observations={"obs": 5, "state": 3})
    policy.set_normalizer(Normalizer.fit(windows.stats_arrays()))
    fit_mirror(policy, windows)
    assert policy.mirror is not None
    obs = {key: torch.as_tensor(data[key][None, :2]) for key in ("obs", "state")}
    image = {key: 9 - value.flip(2) for key, value in obs.items()}  # another order of the keys has another matrix
    shown = policy.mirror.both_observations(policy._encode(obs))
    torch.testing.assert_close(shown[1:], policy._encode(image), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigurationError, match=r"policy\.mirrored=false, so it has no mirror to fit"):
        fit_mirror(tiny_policy(observations={"obs": 5, "state": 3}), windows)
    with pytest.raises(ConfigurationError, match="as many mirror images, but there are 199 steps"):
        fit_mirror(policy, windows_of(ReplayBuffer({key: value[:199] for key, value in data.items()}, np.array([199]))))


@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_an_odd_number_is_not_exported(tmp_path: Path, file_format: str) -> None:
    with pytest.raises(ConfigurationError, match="num_candidates=5 cannot be shared .* give an even number, or 1"):
        export_policy(mirrored_policy(), tmp_path / "policy", file_format, num_candidates=5)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_says_what_was_mirrored() -> None:
    policy = mirrored_policy()
    of_policy = {"noise_scale": 1.0, "num_candidates": N, "mirrored": True}
    assert EvaluationConfig().decisions_of(policy) == of_policy
    assert EvaluationConfig(num_candidates=1).decisions_of(policy) == of_policy | {
        "num_candidates": 1,
        "mirrored": False,
    }
    assert not EvaluationConfig(mirrored=False).decisions_of(policy)["mirrored"]


def test_what_cannot_be_mirrored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="num_candidates must be even, but is 3"):
        tiny_config(mirrored=True, num_candidates=3)
    camera = ObservationSpec(kind="image", shape=[3, 32, 32])
    with pytest.raises(ConfigurationError, match="for observations without images"):
        tiny_config(mirrored=True, num_candidates=2, observations={"camera": camera, "obs": 5})
    policy, plain = mirrored_policy(), tiny_policy()
    with pytest.raises(ValueError, match="3 candidates cannot be shared by two sides"):
        policy.predict_action(tiny_obs(policy, 1), num_candidates=3)
    with pytest.raises(ValueError, match=r"policy\.mirrored=false"):
        plain.predict_action(tiny_obs(plain, 1), num_candidates=2, mirrored=True)
    with pytest.raises(ConfigurationError, match=r"evaluation\.num_candidates=3 cannot be shared"):
        EvaluationConfig(num_candidates=3).check_fits(policy)
    with pytest.raises(ConfigurationError, match=r"evaluation\.mirrored=true needs a policy"):
        EvaluationConfig(mirrored=True).check_fits(plain)
    EvaluationConfig(num_candidates=3, mirrored=False).check_fits(policy)
    parts = {"head": {"name": "drift"}, "network": {"name": "mlp", "width": 16, "depth": 1}}
    settings = parts | {"mirrored": True, "num_candidates": 2}
    with pytest.raises(ConfigurationError, match=r"needs mirrored demonstrations: set task\.symmetry"):
        train(point_training(tmp_path, policy=settings), [], Console(quiet=True))
