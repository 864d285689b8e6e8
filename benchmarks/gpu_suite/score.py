"""Score the policies that `benchmarks.gpu_suite.train` has left: Push-T rollouts by the test protocol.

    python -m benchmarks.gpu_suite.score returned/state_drift_unet.json

Checks the pieces, rebuilds the policy of every checkpoint and rolls it out on the 50 test starts. Writes
results/gpu/<name>.json with every episode, and with the training time after which a seed reached a score of 0.85. Runs
where everything is installed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite.command import positive_integer, run_program
from benchmarks.gpu_suite.pieces import read_pieces
from drift_policy.errors import CheckpointError
from drift_policy.evaluation.rollout import EvaluationConfig, rollout
from drift_policy.evaluation.statistics import mean_interval, success_interval
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.task import make_env_factory
from drift_policy.task_files import task_env

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "configs" / "task"
TARGET_SCORE = 0.85


def read_training(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the record of a training and all its tensors.

    Raises:
        CheckpointError: the record or a piece is missing or damaged.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return record, read_pieces(path.parent, record["pieces"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{path} is not the record of a training: {type(error).__name__} {error}.") from error


def rebuild_policy(record: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> Policy:
    """Return the policy of the checkpoint whose tensors are called `<prefix>/<name>`, in evaluation mode.

    Raises:
        CheckpointError: a tensor is missing, or there is one too many.
    """
    policy = build_policy(policy_config_from_mapping(record["policy"]), record["metadata"])
    own = {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}
    try:
        policy.load_state_dict({name: value.to(torch.float32) for name, value in own.items()})
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint {prefix} does not fit its policy: {error}") from error
    return policy.eval()


def score_checkpoint(
    policy: Policy, run: dict[str, Any], entry: dict[str, Any], config: EvaluationConfig
) -> dict[str, Any]:
    """Roll a policy out and return the row of its checkpoint."""
    env = task_env(TASKS, policy.metadata.get("task"))
    result = rollout(policy, make_env_factory(env, config.step_limit), config)
    print(
        f"seed {run['seed']}, step {entry['step']}, after {entry['seconds']:.0f} s: "
        f"score {result.score}, success {result.success} ({result.wall_s:.0f} s)",
        flush=True,
    )
    return {
        "seed": run["seed"],
        "step": entry["step"],
        "seconds": entry["seconds"],
        "score": result.score.to_mapping(),
        "success": result.success.to_mapping(),
        "episodes": [asdict(episode) for episode in result.episodes],
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of the last checkpoints and the times to the target score.

    Args:
        rows: one for each checkpoint, those of a seed in the order of their steps.
    """
    seeds = {row["seed"]: [other for other in rows if other["seed"] == row["seed"]] for row in rows}
    means = {seed: [row["score"]["mean"] for row in own] for seed, own in seeds.items()}
    last = [episode for own in seeds.values() for episode in own[-1]["episodes"]]
    reached = {
        str(seed): next((row["seconds"] for row in own if row["score"]["mean"] >= TARGET_SCORE), None)
        for seed, own in seeds.items()
    }
    return {
        "seeds": len(seeds),
        "last_checkpoints": {
            "score": mean_interval([episode["score"] for episode in last]).to_mapping(),
            "success": success_interval([episode["success"] for episode in last]).to_mapping(),
        },
        "average_of_checkpoints": {str(seed): mean(scores) for seed, scores in means.items()},
        "best_of_checkpoints": {str(seed): max(scores) for seed, scores in means.items()},
        "target_score": TARGET_SCORE,
        "seconds_to_target_score": reached,
    }


def score(path: Path, output: Path, config: EvaluationConfig, only_last: bool, arguments: Sequence[str]) -> None:
    """Score a training, writing the result after every checkpoint."""
    record, tensors = read_training(path)
    facts = {
        **describe_run("-m benchmarks.gpu_suite.score", arguments),
        "protocol": asdict(config),
        "training": record,
    }
    rows: list[dict[str, Any]] = []
    for run in record["runs"]:
        for entry in run["checkpoints"][-1:] if only_last else run["checkpoints"]:
            policy = rebuild_policy(record, tensors, entry["tensors"])
            rows.append(score_checkpoint(policy, run, entry, config))
            write_json(output / path.name, {**facts, "summary": summarize(rows), "checkpoints": rows})
    if not rows:
        raise CheckpointError(f"{path} has no checkpoint: no training got that far.")
    print(json.dumps(summarize(rows), indent=2), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score trainings."""
    arguments = sys.argv[1:] if arguments is None else arguments
    protocol = EvaluationConfig(max_steps=300)  # of both Push-T tasks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="the JSON files of trainings, their pieces beside them")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--only-last", action="store_true", help="score the last checkpoint of each seed alone")
    parser.add_argument("--episodes", type=positive_integer, default=protocol.n_episodes)
    parser.add_argument("--max-steps", type=positive_integer, default=protocol.step_limit)
    parser.add_argument("--decision-batch-size", type=positive_integer, default=protocol.decision_batch_size)
    given = parser.parse_args(arguments)
    config = EvaluationConfig(
        n_episodes=given.episodes, max_steps=given.max_steps, decision_batch_size=given.decision_batch_size
    )
    for path in given.records:
        score(path, given.output, config, given.only_last, arguments)


if __name__ == "__main__":
    run_program(main)
