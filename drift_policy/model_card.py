"""The model card of a policy on the Hugging Face Hub: README.md from its configuration, metadata and manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_policy.candidates import takes_both_sides
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.result_files import MANIFEST

if TYPE_CHECKING:
    from drift_policy.policy import Policy

LIBRARY = "drift-policy"


def read_manifest(run: str | Path, policy: "Policy") -> dict[str, Any]:
    """Return the manifest of a run or an evaluation of this policy.

    Args:
        run: a run folder, an `eval` folder in it, or a manifest itself.
        policy: what the manifest must be about.

    Raises:
        CheckpointError: there is no manifest, it cannot be read, or it is of another policy.
    """
    path = Path(run) / MANIFEST if Path(run).is_dir() else Path(run)
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist: give the folder of a finished run, which has a {MANIFEST}."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from error
    if not _is_about(manifest, policy):
        raise CheckpointError(f"{path} is about another policy: its configuration differs from that of this one.")
    return manifest


def model_card(policy: "Policy", repo_id: str, manifest: Mapping[str, Any] | None = None) -> str:
    """Return the text of README.md.

    Args:
        policy: the policy.
        repo_id: "owner/name" that it will have.
        manifest: of its run, for scores, command, data and versions; from `read_manifest`.
    """
    manifest = manifest or {}
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        _summary(policy),
        _usage(policy, repo_id),
        _scores(manifest),
        _training(policy, manifest),
    ]
    return f"---\n{_front_matter(policy, repo_id, manifest)}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _is_about(manifest: Any, policy: "Policy") -> bool:
    """Return whether a manifest describes this policy; settings that are younger than it had their defaults."""
    expected = json.loads(json.dumps(policy.config.to_mapping()))
    try:
        return policy_config_from_mapping(_described_policy(manifest)).to_mapping() == expected
    except (ConfigurationError, AttributeError, TypeError):  # what is described is no policy
        return False


def _described_policy(manifest: Any) -> Any:
    """Return the policy's configuration in the manifest of a training run or of an evaluation."""
    if not isinstance(manifest, dict):
        return None
    checkpoint = manifest.get("checkpoint")
    described = (checkpoint if isinstance(checkpoint, dict) else manifest).get("policy")
    return {key: value for key, value in described.items() if key != "parameters"} if described else None


def _front_matter(policy: "Policy", repo_id: str, manifest: Mapping[str, Any]) -> str:
    """Return the YAML by which the Hub files and filters models."""
    from omegaconf import OmegaConf

    task = str(policy.metadata.get("task", "custom"))
    tags = ["robotics", "imitation-learning", LIBRARY, policy.config.head_name, task]
    front: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": "robotics",
        "tags": list(dict.fromkeys(tags)),
    }
    measured = _measured(manifest)
    if measured:
        front["metrics"] = list(measured)
        metrics = [{"type": name, "value": round(value["mean"], 4)} for name, value in measured.items()]
        result = {
            "task": {"type": "robotics", "name": task},
            "dataset": {"name": _data(policy, manifest).get("name", task), "type": task},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": repo_id.rpartition("/")[2], "results": [result]}]
    return OmegaConf.to_yaml(OmegaConf.create(front))


def _measured(manifest: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return name -> mean, low, high and n of what was measured, in rollouts or on held-out episodes."""
    evaluation, open_loop = manifest.get("evaluation"), manifest.get("open_loop")
    if evaluation:
        return {str(evaluation["score_name"]): evaluation["score"], "success": evaluation["success"]}
    return {name: open_loop[name] for name in ("action_error", "action_mse")} if open_loop else {}


def _data(policy: "Policy", manifest: Mapping[str, Any]) -> dict[str, Any]:
    data = manifest.get("data") or policy.metadata.get("data")
    return data if isinstance(data, dict) else {}


def _summary(policy: "Policy") -> str:
    config = policy.config
    parameters = sum(parameter.numel() for parameter in policy.parameters()) / 1e6
    observed = ", ".join(f"`{key}` {spec.shape}" for key, spec in config.observations.items())
    evaluations = policy.num_evaluations
    candidates = f", the most typical of {config.num_candidates} candidates" if config.num_candidates > 1 else ""
    if config.mirrored:
        candidates += ", half of which answer to the mirror image of the observation"
    return (
        f"A robot policy with the {config.head_name} head and a network of the kind {config.network_name} "
        f"({parameters:.2f} M parameters in all). It draws a chunk of actions with {evaluations} network "
        f"evaluation{'s' if evaluations > 1 else ''}{candidates}.\n\n"
        f"It sees {config.n_obs_steps} steps of {observed}, predicts {config.horizon} actions of {config.action_dim} "
        f"numbers and has {config.n_action_steps} of them executed. Numbers are in the units of the demonstrations."
    )


def _usage(policy: "Policy", repo_id: str) -> str:
    keys = ", ".join(f'"{key}": {key}_now' for key in policy.config.observations)
    return (
        "## Use\n\n```python\n"
        "# pip install 'drift-policy[hub]'\n"
        "from drift_policy import load_policy\n"
        f'policy = load_policy("hf://{repo_id}")\n'
        "policy.reset()  # at the start of every episode\n"
        f"action = policy.select_action({{{keys}}})  # in every step of it\n"
        "```"
    )


def _scores(manifest: Mapping[str, Any]) -> str:
    measured = _measured(manifest)
    if not measured:
        return ""
    evaluation = manifest.get("evaluation") or manifest["open_loop"]
    where = "episodes of the environment" if manifest.get("evaluation") else "held-out episodes, open loop"
    rows = [
        f"| {name.replace('_', ' ')} | {value['mean']:.3f} | {value['low']:.3f} to {value['high']:.3f} | {value['n']} |"
        for name, value in measured.items()
    ]
    latency, machine = evaluation["latency_ms"], manifest.get("machine", {})
    number = evaluation.get("num_candidates", 1)
    is_mirrored = takes_both_sides(number, evaluation.get("mirrored", False))
    return "\n".join(
        [
            "## Results",
            "",
            f"| {where} | mean | 95 % interval | episodes |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"A decision took {latency['p50']:.2f} ms (median; 99th percentile {latency['p99']:.2f} ms) on "
            f"{machine.get('gpu') or machine.get('cpu', 'an unknown processor')}. "
            f"Factor on the noise: {evaluation['noise_scale']}; candidates of a decision: "
            f"{number}{', half of them mirrored' if is_mirrored else ''}; "
            f"protocol: `{json.dumps(evaluation['protocol'])}`.",
        ]
    )


def _training(policy: "Policy", manifest: Mapping[str, Any]) -> str:
    facts: list[str] = []
    if "command" in manifest:
        facts.append(f"Command: `{manifest['command']}`, commit `{manifest.get('commit')}`, {manifest.get('date')}")
    data = _data(policy, manifest)
    if data:
        facts.append("Data: " + ", ".join(f"{name} `{value}`" for name, value in data.items()))
    training = manifest.get("training")
    if training:
        facts.append(f"Training: {training['steps']} steps, {training['seconds'] / 60:.1f} minutes")
    if "versions" in manifest:
        versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
        facts.append(f"Versions: {versions}")
    return "\n".join(["## Origin", "", *(f"- {fact}" for fact in facts)]) if facts else ""
