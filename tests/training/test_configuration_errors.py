"""Settings of training that cannot work are refused in words, before anything is written."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import drift_policy
from drift_policy import manifest
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import ConfigurationError
from drift_policy.evaluation.evaluate import EvalConfig, evaluate
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.task import ColumnConfig, ObservationConfig, make_windows, observation_specs
from drift_policy.training import run as run_module
from drift_policy.training.config import RolloutConfig
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes, start_processes
from drift_policy.training.run import train
from drift_policy.training.trainer_config import PLACEMENTS, PRECISIONS, SHARDINGS, TrainerConfig
from drift_policy.training.update import PolicyUpdate
from tests.helpers.point_env import PointEnv
from tests.helpers.point_task import point_task, point_training
from tests.helpers.policies import tiny_policy
from tests.helpers.training_runs import stop_before_step

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
PARTS: dict[str, Any] = {"head": {"name": "drift"}, "network": {"name": "mlp", "width": 16, "depth": 1}}


def mirrored_walks(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Swap the two coordinates of every position."""
    observation = columns["observation"][:, [1, 0, 3, 2]]
    return columns | {"observation": observation, "action": columns["action"][:, [1, 0]]}


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"sharding": "fsdp2"}, r"trainer\.sharding=fsdp2 .*there is one: start with torchrun"),
        ({"gradient_accumulation_steps": 3}, r"trainer\.batch_size=16 .* 3 gradient .* multiple of 3"),
        ({"precision": "tfloat32"}, r"trainer\.precision=tfloat32 .*the device is cpu: use float32 or bfloat16"),
    ],
)
def test_settings_that_do_not_fit_the_machine_or_each_other(
    tmp_path: Path, trainer: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        train(point_training(tmp_path, trainer=trainer), [], QUIET)
    assert not (tmp_path / "runs/point/test/checkpoints").exists()


@pytest.mark.parametrize("section", ["evaluation", "rollout"])
def test_measurements_that_the_policy_cannot_give_are_refused_before_it_is_trained(
    tmp_path: Path, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "find_symmetry", lambda _: mirrored_walks)
    config = point_training(tmp_path, policy=PARTS | {"mirrored": True, "num_candidates": 2})
    config.task.symmetry = "replaced:above"
    getattr(config, section).num_candidates = 5
    with pytest.raises(ConfigurationError, match=rf"{section}\.num_candidates=5 cannot .*or {section}\.mirrored=false"):
        train(config, [], QUIET)
    assert not (tmp_path / "runs/point/test/checkpoints").exists()
    plain = point_training(tmp_path)
    getattr(plain, section).mirrored = True
    with pytest.raises(ConfigurationError, match=rf"{section}\.mirrored=true needs a policy"):
        train(plain, [], QUIET)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"observations": {"joints": None}},
            r"observes 'joints' with shape \[4\], but the environment shows \{'obs': \[4",
        ),
        (
            {"observations": {"obs": 3}},
            r"observes 'obs' with shape \[3\].*observations, action and env of the task point",
        ),
        ({"action": 1}, r"commands 1 numbers, but the environment takes 2"),
    ],
)
@pytest.mark.parametrize("rollout_every", [0, 5])
def test_demonstrations_that_do_not_fit_the_environment_are_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], expected: str, rollout_every: int
) -> None:
    config = point_training(tmp_path, trainer={"rollout_every": rollout_every})
    for key, stop in changes.get("observations", {}).items():
        config.task.observations = {key: ObservationConfig([ColumnConfig("observation", stop=stop)])}
    config.task.action[0].stop = changes.get("action")
    with pytest.raises(ConfigurationError, match=expected):
        train(config, [], QUIET)
    assert not (tmp_path / "runs/point/test/checkpoints").exists()


def test_arguments_that_the_environment_does_not_take_are_named(tmp_path: Path) -> None:
    config = point_training(tmp_path)
    assert config.task.env is not None
    config.task.env.kwargs = {"colour": "red"}
    with pytest.raises(
        ConfigurationError, match=r"cannot be made with task\.env\.kwargs=\{'colour': 'red'\} \(TypeError"
    ):
        train(config, [], QUIET)


def test_success_that_is_never_reported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PointEnv.step

    def silent(self: PointEnv, action: np.ndarray) -> tuple[Any, ...]:
        return (*step(self, action)[:4], {})

    monkeypatch.setattr(PointEnv, "step", silent)
    console = Console(record=True, width=200, file=io.StringIO())
    train(point_training(tmp_path, trainer={"num_steps": 2, "rollout_every": 2}), [], console)
    assert console.export_text().count("never reported info['is_success']") == 2  # of the rollout and of the evaluation


def test_rollouts_that_are_never_made_are_not_checked(tmp_path: Path) -> None:
    config = point_training(tmp_path, trainer={"rollout_every": 0, "num_steps": 1})
    config.rollout.mirrored = True
    train(config, [], QUIET)


def test_settings_of_rollouts_are_named_as_such() -> None:
    with pytest.raises(ConfigurationError, match=r"^rollout\.n_envs must be at least 1, but is 0"):
        RolloutConfig(n_envs=0)
    with pytest.raises(ConfigurationError, match=r"^evaluation\.start_seed must not be negative, but is -1"):
        EvaluationConfig(start_seed=-1)
    assert (RolloutConfig().n_episodes, RolloutConfig().start_seed) == (100, 200000)


def test_the_manifest_tells_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = ["at the start"]
    monkeypatch.setattr(manifest, "_commit", lambda: commits[-1])
    stop_before_step(monkeypatch, 3, lambda: commits.append("while it runs"))
    run = train(point_training(tmp_path, trainer={"num_steps": 5, "rollout_every": 0}), [], QUIET)
    assert len(commits) == 2
    assert json.loads((run / "manifest.json").read_text())["commit"] == "at the start"


def test_a_copy_without_history_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_policy, "__file__", str(tmp_path / "drift_policy" / "__init__.py"))
    monkeypatch.delenv(manifest.COMMIT_VARIABLE, raising=False)
    assert manifest.describe_run("train_policy.py", [])["commit"] is None
    monkeypatch.setenv(manifest.COMMIT_VARIABLE, "abc123")
    assert manifest.describe_run("train_policy.py", [])["commit"] == "abc123"


def update_of(processes: Processes, **settings: Any) -> PolicyUpdate:
    policy = tiny_policy("regression")
    config = TrainerConfig(**settings)
    return PolicyUpdate(policy, Ema(policy, 0.9), config, processes, seed=0)


def several(size: int, sharding: str = "none") -> Processes:
    """Processes that a check may count; they are not started."""
    processes = Processes(CPU, sharding=sharding)
    processes.size = size
    return processes


def test_batch_must_be_shared_by_processes_and_parts() -> None:
    with pytest.raises(ConfigurationError, match=r"batch_size=16 is shared by 3 process.* 2 gradient .* multiple of 6"):
        update_of(several(3), batch_size=16, gradient_accumulation_steps=2)
    update_of(several(4), batch_size=16, gradient_accumulation_steps=2)


def test_compiled_updates_cannot_be_sharded() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.compile=true and trainer\.sharding=fsdp2"):
        update_of(several(2, "fsdp2"), batch_size=16, compile=True)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("precision", "float16", PRECISIONS),
        ("sharding", "fsdp", SHARDINGS),
        ("data_placement", "gpu", PLACEMENTS),
    ],
)
def test_unknown_names_say_which_exist(name: str, value: str, choices: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.{name} must be one of {', '.join(choices)}.*{value}"):
        TrainerConfig(**{name: value})  # type: ignore[arg-type]
    for choice in choices:
        TrainerConfig(**{name: choice})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gradient_accumulation_steps", "num_workers"])
def test_counts_are_at_least_one(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.{name} must be at least 1"):
        TrainerConfig(**{name: 0})


def test_several_processes_without_accelerate_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigurationError, match=r"needs the package accelerate: pip install 'drift-policy\[train\]'"):
        start_processes(CPU, "none")


def test_the_trainer_alone_says_in_which_precision_several_processes_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def accelerator(**settings: Any) -> SimpleNamespace:
        given.update(settings)
        return SimpleNamespace(device=CPU, process_index=0, num_processes=2)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    start_processes(CPU, "none")
    assert given["mixed_precision"] == "no"  # None would take what `accelerate launch` says


@pytest.mark.parametrize(
    ("gives", "said"), [(None, "OSError: no OpenGL"), (np.zeros((4, 4)), r"float64 of shape \[4, 4\]")]
)
def test_a_machine_that_cannot_render_is_known_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives: Any, said: str
) -> None:
    def render(_: PointEnv) -> Any:
        if gives is None:
            raise OSError("no OpenGL")
        return gives

    monkeypatch.setattr(PointEnv, "render", render)
    with pytest.raises(ConfigurationError, match=rf"Point-v0.*{said}.*video_episodes=0"):
        train(point_training(tmp_path, video_episodes=2), [], QUIET)
    assert not list(tmp_path.rglob("*.safetensors"))

    run = train(point_training(tmp_path), [], QUIET)
    assert (run / "manifest.json").is_file() and not (run / "action_fan.png").exists()
    config = EvalConfig(str(run), EvaluationConfig(n_episodes=1, max_steps=4), point_task(), video_episodes=1)
    with pytest.raises(ConfigurationError, match=rf"{said}.*video_episodes=0"):
        evaluate(config, tmp_path, [], QUIET)
    assert not (run / "eval").exists()


@pytest.mark.parametrize(
    ("shape", "crop", "message"),
    [
        ((8, 8), None, r"task\.observations\.cam is of kind image, but its column 'front' holds no images .*None\]"),
        ((8, 8, 3), [9, 9], r"task\.observations\.cam: A crop of \[9, 9\] does not fit"),
    ],
)
def test_what_is_wrong_with_a_camera_names_it(shape: tuple[int, ...], crop: list[int] | None, message: str) -> None:
    columns = {"front": np.zeros((20, *shape), np.uint8), "action": np.zeros((20, 2), np.float32)}
    camera = ObservationConfig([ColumnConfig("front")], kind="image", crop=crop)
    task = replace(point_task(), observations={"cam": camera})
    buffer = ReplayBuffer(columns, np.array([20]))
    windows = make_windows(task, buffer, np.ones(1, bool), horizon=8, n_obs_steps=2, n_action_steps=4)
    with pytest.raises(ConfigurationError, match=message):
        observation_specs(task, windows)
