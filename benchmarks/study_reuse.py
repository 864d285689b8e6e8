"""Is a run that was made still the run that its command makes?

A command alone does not say: the defaults that it leaves in place change, and so does the checkpoint that it names.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose

from benchmarks.multimodal_toy import ToyConfig, recorded_settings
from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.errors import UserError
from drift_policy.evaluation.evaluate import EvalConfig, checkpoint_facts
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.serialization import load_policy, resolve_checkpoint
from drift_policy.task_files import hydra_in
from drift_policy.training.config import TrainConfig
from drift_policy.training.run_folder import changed_settings, course_of_a_run

TRAINING, EVALUATION, TOY = "train_policy.py", "eval_policy.py", "-m benchmarks.multimodal_toy"
# Where and how fast a training computes. Another machine rounds otherwise and draws another dropout, as a seed does.
MACHINE = ("device", "trainer.compile", "trainer.data_placement", "trainer.num_workers", "trainer.num_threads")
_SOURCES = ("data_path", "plugins")
_CONFIGS = Path(__file__).parents[1] / "configs"


def what_changed(manifest: Mapping[str, Any], program: str, arguments: Sequence[str]) -> list[str]:
    """Return what a manifest records otherwise than a run of the same command would today; nothing if it still counts.

    Args:
        manifest: of a run of this command.
        program: as python is given it. Of one that is not known here, the command is all there is to compare.
        arguments: of the program.

    Raises:
        UserError: the command makes no run today.
    """
    kinds = {TRAINING: _changes_of_a_training, EVALUATION: _changes_of_an_evaluation, TOY: _changes_of_a_toy}
    return list(dict.fromkeys(kinds[program](manifest, arguments))) if program in kinds else []


def sources(arguments: Sequence[str]) -> set[str]:
    """Return what a command says of the data and the code of others that it uses, which no manifest tells."""
    return {argument for argument in arguments if argument.partition("=")[0].lstrip("+") in _SOURCES}


def _changes_of_a_training(manifest: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    config = parse_config(TrainConfig, _composed("train", arguments))
    try:
        changed = changed_settings(manifest.get("config", {}), course_of_a_run(config))
    except UserError:  # of a head or network that is no longer there
        return ["config"]
    env = config.task.env
    if env is not None and not manifest.get("evaluation"):
        return ["evaluation"]
    protocol = config.evaluation if env is None else config.evaluation.for_task(env.max_steps)
    return [
        # It goes by another name where another question asks for it.
        *(name for name in changed if name not in ("name", *MACHINE)),
        *_changes_of_a_policy(manifest, config.policy),
        *_changes_of_a_protocol(manifest, protocol),
    ]


def _changes_of_an_evaluation(manifest: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    config = parse_config(EvalConfig, _composed("eval", arguments))
    folder = resolve_checkpoint(config.ckpt)
    now = _plain(checkpoint_facts(load_policy(folder), folder))
    before = dict(manifest.get("checkpoint", {}))
    if _policy(before.get("policy")) == now["policy"]:  # with the defaults of settings that are younger
        before["policy"] = now["policy"]
    changed = [f"checkpoint.{key}" for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    return [*changed, *_changes_of_a_protocol(manifest, config.evaluation)]


def _changes_of_a_toy(manifest: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    now = _plain(recorded_settings(parse_config(ToyConfig, _composed("multimodal_toy", arguments))))
    before = manifest.get("config", now)  # which the first ones did not record
    changed = [key for key in dict.fromkeys([*before, *now]) if key != "policy" and before.get(key) != now.get(key)]
    return [*changed, *_changes_of_a_policy(manifest, now["policy"])]


def _changes_of_a_policy(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Compare the policy that was trained with one of today's settings for the same data."""
    before = _policy(manifest.get("policy"))
    if before is None:
        return ["policy"]
    sizes = {name: before[name] for name in ("action_dim", "observations")}
    now = policy_config_from_mapping({**settings, **sizes}).to_mapping()
    return [f"policy.{key}" for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]


def _changes_of_a_protocol(manifest: Mapping[str, Any], config: EvaluationConfig) -> list[str]:
    """Compare how a policy was rolled out with how it would be; a length that is not set is the task's."""
    protocol = (manifest.get("evaluation") or manifest.get("open_loop") or {}).get("protocol", {})
    now = {name: value for name, value in vars(config).items() if (name, value) != ("max_steps", None)}
    return [f"evaluation.{name}" for name, value in now.items() if name in protocol and protocol[name] != value]


def _policy(recorded: Any) -> dict[str, Any] | None:
    """Return a recorded policy with the defaults of settings that are younger, or None if it makes no policy today."""
    try:
        values = {key: value for key, value in recorded.items() if key != "parameters"}
        return _plain(policy_config_from_mapping(values).to_mapping())
    except (UserError, AttributeError, TypeError):
        return None


def _composed(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the configuration that a program would compose of these arguments."""
    return deepcopy(_composed_once(name, tuple(arguments)))


@cache
def _composed_once(name: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Compose it: one run is compared with many manifests."""
    with hydra_in(_CONFIGS):
        return resolved(compose(name, list(arguments)))


def _plain(values: Any) -> Any:
    """Return values as a manifest gives them back."""
    return json.loads(json.dumps(values))
