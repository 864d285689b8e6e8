"""Exported policies choose among candidates inside the graph, as the policy does, and older files draw one chunk."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy import Policy
from drift_policy import export as command
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.runtime.export import export_policy
from drift_policy.runtime.onnx_policy import OnnxPolicy
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.spec import METADATA_KEY, describe_policy
from drift_policy.runtime.warm_up import warm_up
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.policies import tiny_obs, tiny_policy

onnx = pytest.importorskip("onnx", reason="needs the packages of the export extra")
pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")

N = 16


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    policy = tiny_policy(num_candidates=N, noise_scale=0.5)
    path = tmp_path_factory.mktemp("exported") / "policy.onnx"
    export_policy(policy, path)
    return policy, path


def check_choices(policy: Policy, path: Path) -> None:
    """Compare predictions, and which of the candidates they are, in batches of 1 and 5."""
    run = OnnxPolicy(path)
    for batch in (1, 5):
        obs = {key: value.numpy() for key, value in tiny_obs(policy, batch, seed=batch).items()}
        noise = np.random.default_rng(batch).standard_normal((batch, N, policy.horizon, 2)).astype(np.float32)
        expected = policy.predict_action(obs, noise=noise)["action_pred"].numpy()
        found = run.predict_action(obs, noise=noise)["action_pred"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-3)
        singles = [policy.predict_action(obs, noise=noise[:, number])["action_pred"].numpy() for number in range(N)]
        candidates = np.stack(singles, axis=1)

        def chosen(prediction: np.ndarray, candidates: np.ndarray = candidates) -> list[int]:
            differences = np.abs(candidates - prediction[:, None]).max(axis=(2, 3))
            assert differences.min(axis=1).max() < 2e-3, "it is one of them"
            return differences.argmin(axis=1).tolist()

        assert chosen(found) == chosen(expected)


def test_the_graph_chooses_what_pytorch_chooses(exported: tuple[Policy, Path]) -> None:
    check_choices(*exported)


def test_it_chooses_from_features_too(tmp_path: Path) -> None:
    policy = tiny_image_policy(num_candidates=N)
    export_policy(policy, tmp_path / "policy.onnx")
    check_choices(policy, tmp_path / "policy.onnx")
    run = OnnxPolicy(tmp_path / "policy.onnx", seed=0)
    obs = {key: value.numpy() for key, value in tiny_obs(policy, 2).items()}
    noise = np.random.default_rng(0).standard_normal((2, N, policy.horizon, 2)).astype(np.float32)
    older, newest = ({key: value[:, part] for key, value in obs.items()} for part in (slice(1), slice(1, 2)))
    answer = run.predict_action(newest, noise=noise, features=[run.encode_step(older)])
    expected = policy.predict_action(obs, noise=noise)["action_pred"]
    np.testing.assert_allclose(answer["action_pred"], expected.numpy(), rtol=1e-5, atol=4e-3)


def test_a_pt2_file_chooses_too_and_says_the_number(tmp_path: Path) -> None:
    policy = tiny_policy()
    assert export_policy(policy, tmp_path / "policy.pt2", "pt2", num_candidates=3) <= 1e-5
    extra = {f"{METADATA_KEY}.json": ""}
    graph = torch.export.load(tmp_path / "policy.pt2", extra_files=extra).module()
    assert json.loads(extra[f"{METADATA_KEY}.json"])["num_candidates"] == 3
    obs, noise = tiny_obs(policy, 5), torch.randn(5, 3, policy.horizon, 2)
    expected = policy.predict_action(obs, noise=noise)["action_pred"]
    torch.testing.assert_close(graph(obs, noise), expected, rtol=1e-5, atol=2e-3)


def test_the_file_says_the_number_and_takes_noise_of_all_candidates_or_of_one(exported: tuple[Policy, Path]) -> None:
    policy, path = exported
    run, obs = OnnxPolicy(path, seed=3), {key: value.numpy() for key, value in tiny_obs(policy, 2).items()}
    assert run.spec == describe_policy(policy)
    assert run.spec.num_candidates == N
    drawn = np.random.default_rng(3).standard_normal((2, N, 6, 2), dtype=np.float32)
    explicit = run.predict_action(obs, noise=drawn)["action_pred"]
    np.testing.assert_array_equal(run.predict_action(obs)["action_pred"], explicit)
    by_call = run.predict_action(obs, generator=np.random.default_rng(3))["action_pred"]
    np.testing.assert_array_equal(by_call, explicit)
    one = run.predict_action(obs, noise=drawn[:, 0])["action_pred"]
    expected = policy.predict_action(obs, noise=drawn[:, 0])["action_pred"].numpy()
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=2e-3)
    assert np.abs(one - explicit).max() > 1.0
    with pytest.raises(ValueError, match=r"shape \[2, 6, 2\], but has \[2, 3, 6, 2\]; that of all .* \[2, 16, 6, 2\]"):
        run.predict_action(obs, noise=drawn[:, :3])


def test_the_robot_loop_draws_all_candidates(exported: tuple[Policy, Path]) -> None:
    policy, path = exported
    observation = np.zeros(5, np.float32)
    warm = OnnxPolicy(path, seed=1)
    warm_up(warm, calls=1)
    noise = np.random.default_rng(1).standard_normal((1, N, 6, 2), dtype=np.float32)
    expected = policy.predict_action({"obs": np.zeros((1, 2, 5), np.float32)}, noise=noise)["action"][0, 0].numpy()
    for action in (
        warm.select_action(observation),
        RecedingHorizon(OnnxPolicy(path, seed=1), 10.0).step(observation).action,
    ):
        np.testing.assert_allclose(action, expected, rtol=1e-5, atol=2e-3)


def changed(path: Path, output: Path, **entries: Any) -> Path:
    """Write a copy whose metadata have other entries; None takes one out."""
    model = onnx.load(path)
    (entry,) = model.metadata_props
    values = json.loads(entry.value) | entries
    entry.value = json.dumps({name: value for name, value in values.items() if value is not None})
    onnx.save(model, output)
    return output


def test_a_file_without_the_entry_draws_one_chunk(tmp_path: Path) -> None:
    policy = tiny_policy(num_candidates=N)
    export_policy(policy, tmp_path / "policy.onnx", num_candidates=1)
    older = OnnxPolicy(changed(tmp_path / "policy.onnx", tmp_path / "older.onnx", num_candidates=None))
    assert older.spec.num_candidates == 1
    obs = {key: value.numpy() for key, value in tiny_obs(policy).items()}
    noise = np.random.default_rng(0).standard_normal((3, 6, 2)).astype(np.float32)
    expected = policy.predict_action(obs, noise=noise)["action_pred"].numpy()
    for given in (noise, noise[:, None]):
        found = older.predict_action(obs, noise=given)["action_pred"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (None, r"noise is tensor\(float\) .*, but its metadata say .*batch, 6, 2\]"),
        (3, r"metadata say .*batch, 3, 6, 2\]"),
        (0, "num_candidates of a policy must be a positive number, not 0"),
        ("many", "num_candidates of a policy must be a positive number, not 'many'"),
    ],
)
def test_a_number_that_is_not_the_graphs_is_refused(
    exported: tuple[Policy, Path], tmp_path: Path, number: Any, message: str
) -> None:
    path = changed(exported[1], tmp_path / "changed.onnx", num_candidates=number)
    with pytest.raises(CheckpointError, match=message):
        OnnxPolicy(path)


def test_a_number_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="num_candidates must be at least 1, but is 0"):
        export_policy(tiny_policy(), tmp_path / "policy.onnx", num_candidates=0)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_another_number_than_the_policys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_policy(num_candidates=2).save_pretrained(tmp_path / "checkpoint")
    output = tmp_path / "policy.onnx"
    arguments = [f"ckpt={tmp_path / 'checkpoint'}", f"output={output}", "num_candidates=4"]
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    command.main()
    assert OnnxPolicy(output).spec.num_candidates == 4
