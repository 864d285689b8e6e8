"""What a training run does besides resuming: schedule, data order, metrics, top-k table, failures."""

import csv
import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import load_file

from drift_policy import load_policy
from drift_policy.device import choose_device
from drift_policy.errors import ConfigurationError, DataError, UserError
from drift_policy.evaluation.rollout import rollout
from drift_policy.networks.mlp import Mlp
from drift_policy.task import EnvConfig, load_demonstrations, make_env_factory
from drift_policy.training import saved_state
from drift_policy.training import trainer as trainer_module
from drift_policy.training import update as update_module
from drift_policy.training.config import TrainerConfig
from drift_policy.training.ema import Ema
from drift_policy.training.run import build_policy_and_data, train
from drift_policy.training.schedule import batch_indices, learning_rate, step_generator
from tests.helpers.point_env import ID
from tests.helpers.point_task import point_training
from tests.helpers.policies import tiny_policy
from tests.helpers.training_runs import tensors_of

QUIET = Console(quiet=True)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 5))
def test_every_window_is_seen_at_most_once_in_an_epoch(batch_size: int, num_windows: int, seed: int) -> None:
    batches = max(1, num_windows // batch_size)
    epoch = np.concatenate([batch_indices(step, num_windows, batch_size, seed) for step in range(batches)])
    assert len(np.unique(epoch)) == len(epoch) == min(num_windows, batches * batch_size)
    again = batch_indices(batches, num_windows, batch_size, seed)
    assert len(again) == min(batch_size, num_windows), "what is left over of an epoch is no batch"
    if num_windows > 100:  # fewer may by chance begin alike
        assert not np.array_equal(again, epoch[: len(again)]) or len(again) < 5


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainerConfig(num_steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert np.argmax(rates) == 9
    assert rates[-1] < 1e-3
    assert all(late < early for early, late in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_follows_its_definition(warmup: bool) -> None:
    policy = tiny_policy().train()
    ema = Ema(policy, decay=0.5, warmup=warmup)
    assert policy.training and not any(module.training for module in ema.policy.modules())
    weight, averaged = next(policy.parameters()), next(ema.policy.parameters())
    expected = weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            weight.add_(1.0)
        ema.update(policy)
        decay = min(0.5, (1 + update) / (10 + update)) if warmup else 0.5
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(averaged.detach(), expected)  # now: the first decays are soon forgotten
    assert not averaged.requires_grad


def test_run_leaves_everything_a_user_expects(tmp_path: Path) -> None:
    run = train(point_training(tmp_path, video_episodes=2), ["task=point"], QUIET)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["command"] == "python train_policy.py task=point"
    assert manifest["data"]["episodes"] == 12
    assert len(manifest["data"]["sha256"]) == 64
    assert [episode["seed"] for episode in manifest["evaluation"]["episodes"]] == [100000, 100001, 100002, 100003]
    assert manifest["evaluation"]["latency_ms"]["p50"] > 0
    for name in ("curves.png", "action_fan.png", "rollouts.mp4"):
        assert (run / name).stat().st_size > 1000
    rows = rows_of(run)
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    for name in ("train/force_0.02", "train/scale", "train/spread", "train/action_mse", "train/samples_per_s"):
        assert all(float(row[name]) > 0 for row in rows)
    assert rows[1]["val/action_mse"] and not rows[0]["val/action_mse"]
    policy = load_policy(run)
    assert policy.metadata["task"] == "point"


def test_only_the_best_checkpoints_stay(tmp_path: Path) -> None:
    run = train(point_training(tmp_path), [], QUIET)
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    scores = {int(row["step"]): float(row["rollout/score"]) for row in rows_of(run)}
    best = sorted(scores, key=lambda step: scores[step], reverse=True)[:2]
    assert [entry["step"] for entry in index["scores"]] == best
    assert index["best"] == f"step_{best[0]:08d}"
    on_disk = {path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("step_")}
    assert on_disk == {f"step_{step:08d}" for step in best}


def test_scores_and_kept_checkpoints_are_those_of_the_averaged_policy_on_the_rollout_seeds(tmp_path: Path) -> None:
    config = point_training(tmp_path, trainer={"keep_best": 4})
    run = train(config, [], QUIET)
    checkpoints, make_env = run / "checkpoints", make_env_factory(EnvConfig(id=ID), 12)
    rows = json.loads((checkpoints / "index.json").read_text())["scores"]
    assert sorted(row["step"] for row in rows) == [5, 10, 15, 20]
    for row in rows:
        policy = load_policy(checkpoints / row["folder"])
        assert rollout(policy, make_env, config.rollout).score.mean == row["score"]
    saved, kept = tensors_of(run), load_file(checkpoints / "step_00000020" / "model.safetensors")
    assert all(torch.equal(tensor, saved[f"ema.{name}"]) for name, tensor in kept.items())
    assert not torch.equal(kept["head.network.output.weight"], saved["policy.head.network.output.weight"])


def test_the_decay_of_the_average_is_that_of_the_trainer(tmp_path: Path) -> None:
    trainer = {"ema_decay": 0.0, "num_steps": 3, "rollout_every": 0}
    saved = tensors_of(train(point_training(tmp_path, trainer=trainer), [], QUIET))
    averaged = {name.removeprefix("ema."): tensor for name, tensor in saved.items() if name.startswith("ema.")}
    assert averaged
    assert [name for name, tensor in averaged.items() if not torch.equal(tensor, saved[f"policy.{name}"])] == []


def test_training_learns(tmp_path: Path) -> None:
    config = point_training(tmp_path, trainer={"num_steps": 300, "rollout_every": 0, "learning_rate": 1e-2})
    errors = [float(row["val/action_mse"]) for row in rows_of(train(config, [], QUIET)) if row["val/action_mse"]]
    assert errors[-1] < 0.1 * errors[0]


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> torch.Tensor:
        policy = load_policy(train(point_training(tmp_path / folder, seed=seed), [], QUIET))
        return torch.cat([parameter.flatten() for parameter in policy.parameters()])

    first = weights("a", 1)
    assert torch.equal(first, weights("b", 1))
    assert not torch.equal(first, weights("c", 2))


def test_data_order_and_noise_are_those_of_the_seed_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[int]] = {"order": set(), "noise": set()}

    def order(step: int, num_windows: int, batch_size: int, seed: int) -> np.ndarray:
        used["order"].add(seed)
        return batch_indices(step, num_windows, batch_size, seed)

    def noise(step: int, seed: int) -> torch.Generator:
        used["noise"].add(seed)
        return step_generator(step, seed)

    monkeypatch.setattr(trainer_module, "batch_indices", order)
    monkeypatch.setattr(update_module, "step_generator", noise)
    train(point_training(tmp_path, seed=7, trainer={"num_steps": 2, "rollout_every": 0}), [], QUIET)
    assert used == {"order": {7}, "noise": {7}}


@pytest.mark.parametrize(("precision", "computed"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precisions_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, computed: torch.dtype
) -> None:
    types: set[torch.dtype] = set()
    original = Mlp.generate

    def recording(network: Mlp, *arguments: Any) -> torch.Tensor:
        chunks = original(network, *arguments)
        if network.training:
            types.add(chunks.dtype)
        return chunks

    monkeypatch.setattr(Mlp, "generate", recording)
    run = train(point_training(tmp_path, trainer={"precision": precision}), [], QUIET)
    assert types == {computed}
    assert next(load_policy(run).parameters()).dtype == torch.float32


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = saved_state.save_file
    calls: list[Path] = []

    def failing(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) > 3:  # after the checkpoint of step 10
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(saved_state, "save_file", failing)
    with pytest.raises(UserError, match=r"disk is full.*resume=true"):
        train(point_training(tmp_path), [], QUIET)
    run = tmp_path / "runs" / "point" / "test"
    assert json.loads((run / "checkpoints" / "last" / "training.json").read_text())["step"] == 10
    monkeypatch.undo()
    train(point_training(tmp_path, resume=True), [], QUIET)
    assert json.loads((run / "checkpoints" / "last" / "training.json").read_text())["step"] == 20


def test_divergence_is_reported_and_never_saved(tmp_path: Path) -> None:
    # Only the checkpoints look at the weights: the first one is finite, and so large that the next is not.
    seldom = {"log_every": 100, "validate_every": 100, "rollout_every": 0, "checkpoint_every": 1, "num_steps": 6}
    policy = {"head": {"name": "regression"}, "network": {"name": "mlp", "width": 16, "depth": 1}}
    config = point_training(
        tmp_path, policy=policy, trainer={"learning_rate": 1e30, "gradient_clip": 1e30, "warmup_steps": 0, **seldom}
    )
    with pytest.raises(UserError, match="diverged"):
        train(config, [], QUIET)
    last = tmp_path / "runs" / "point" / "test" / "checkpoints" / "last"
    assert json.loads((last / "training.json").read_text())["step"] >= 1
    assert all(bool(torch.isfinite(p).all()) for p in load_policy(last).parameters())


def test_only_so_many_episodes_are_trained_on(tmp_path: Path) -> None:
    config = point_training(tmp_path, trainer={"max_train_episodes": 3})
    demonstrations = load_demonstrations(config.task, config.data_path, False, lambda _: None)
    _, data = build_policy_and_data(config, demonstrations, torch.device("cpu"))
    assert data.validation is not None
    trained_on, held_out = set(data.train.episodes), set(data.validation.episodes)
    assert len(trained_on) == 3 and not trained_on & held_out


def test_too_large_batch_says_what_fits(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"batch_size=100000 is larger than the \d+ training windows"):
        train(point_training(tmp_path, trainer={"batch_size": 100000}), [], QUIET)


def test_missing_column_says_which_exist(tmp_path: Path) -> None:
    config = point_training(tmp_path)
    config.task.action[0].name = "actions"
    with pytest.raises(DataError, match="actions"):
        train(config, [], QUIET)


def test_unknown_device_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="device=warp"):
        choose_device("warp")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_steps", 0), ("learning_rate", 0.0), ("ema_decay", 1.0), ("precision", "float8"), ("betas", [0.9])],
)
def test_bad_trainer_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.{field}"):
        TrainerConfig(**{field: value})


def test_the_file_of_the_command_line_says_the_defaults_of_the_trainer() -> None:
    file = Path(__file__).resolve().parents[2] / "configs/trainer/default.yaml"
    assert OmegaConf.to_container(OmegaConf.load(file)) == asdict(TrainerConfig())


def test_measuring_does_not_change_the_course_of_a_run(tmp_path: Path) -> None:
    weights = []
    for every in (2, 20):
        settings = {"validate_every": every, "rollout_every": every, "log_every": every}
        run = train(point_training(tmp_path / str(every), trainer=settings), [], QUIET)
        tensors = load_file(run / "checkpoints" / "last" / "training.safetensors")
        weights.append(torch.cat([tensor.flatten() for name, tensor in tensors.items() if name.startswith("policy.")]))
    assert torch.equal(*weights)
