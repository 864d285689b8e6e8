"""A checkpoint is scored in the environment and with the actions that it was trained for, or not at all."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.evaluation import evaluate as evaluate_module
from drift_policy.evaluation.evaluate import EvalConfig, evaluate
from drift_policy.evaluation.rollout import EvaluationConfig, RolloutResult
from drift_policy.policy import Policy
from drift_policy.task import EnvConfig, TaskConfig
from tests.helpers.point_env import ID
from tests.helpers.point_task import point_task
from tests.helpers.policies import tiny_policy

QUIET = Console(quiet=True)
TASK_FILE = """\
name: point
dataset: {name: point, relative_path: point.zarr}
observations: {obs: {columns: [{name: observation}]}}
action: [{name: action}]
env: {id: '%s', max_steps: 10}
"""


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., RolloutResult]:
    (tmp_path / "point.yaml").write_text(TASK_FILE % ID)

    def run(metadata: dict[str, Any], task: TaskConfig | None = None, console: Console = QUIET) -> RolloutResult:
        policy: Policy = tiny_policy(observations={"obs": 4})
        policy.metadata.update({"task": "point", **metadata})
        policy.save_pretrained(tmp_path / "policy")
        config = EvalConfig(str(tmp_path / "policy"), EvaluationConfig(n_episodes=2), task)
        result = evaluate(config, tmp_path, [], console)
        assert isinstance(result, RolloutResult)
        return result

    return run


def test_the_environment_of_the_training_is_that_of_the_evaluation(score: Callable[..., RolloutResult]) -> None:
    made = EnvConfig(id=ID).made_as()
    assert len(score({"environment_made": made, "action_space": "absolute"}).episodes) == 2
    assert len(score({}).episodes) == 2  # an older checkpoint does not say


def test_another_environment_than_that_of_the_training_is_refused(score: Callable[..., RolloutResult]) -> None:
    made = EnvConfig(id=ID, kwargs={"action_mode": "absolute"}).made_as()
    with pytest.raises(CheckpointError, match=r"trained for the environment .*'action_mode'.* Give task=point"):
        score({"environment_made": made})
    assert len(score({"environment_made": made}, point_task()).episodes) == 2  # asked for by name


def test_results_of_other_episode_lengths_and_phases_are_kept(
    score: Callable[..., RolloutResult], tmp_path: Path
) -> None:
    tasks = [point_task() for _ in range(3)]
    for task, changed in zip(tasks, ({}, {"max_steps": 7}, {"phases": 2}), strict=True):
        assert task.env is not None
        task.env = replace(task.env, **changed)
        score({}, task)
        score({}, task)  # asked again: replaced
    assert sorted(path.name for path in (tmp_path / "policy").glob("eval*")) == ["eval", "eval_1", "eval_2"]
    assert "success_reported" in json.loads((tmp_path / "policy" / "eval" / "manifest.json").read_text())["evaluation"]


@pytest.mark.parametrize(
    ("trained", "noted"),
    [
        ({"mujoco": "3.2.0", "pymunk": "6.0"}, True),
        ({"mujoco": "3.3.1"}, False),
        ({}, False),
        (None, False),
        (3, False),
    ],
)
def test_another_release_of_the_simulator_is_noted(
    score: Callable[..., RolloutResult], monkeypatch: pytest.MonkeyPatch, trained: Any, noted: bool
) -> None:
    monkeypatch.setattr(evaluate_module, "simulator_versions", lambda: {"mujoco": "3.3.1"})
    console = Console(record=True, width=200, file=io.StringIO())
    score({} if trained is None else {"simulators": trained}, console=console)
    text = console.export_text()
    assert ("mujoco is 3.3.1 here and was 3.2.0 when the policy was trained" in text) == noted
    assert "pymunk" not in text and ("scores may differ" in text) == noted


@pytest.mark.parametrize("task", [None, point_task()])
def test_other_actions_than_those_of_the_training_are_refused(
    score: Callable[..., RolloutResult], task: TaskConfig | None
) -> None:
    with pytest.raises(ConfigurationError, match=r"actions are 'relative', but those of the task are 'absolute'"):
        score({"action_space": "relative"}, task)
