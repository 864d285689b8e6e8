"""Names of the facts in a checkpoint's metadata that programs read back."""

from collections.abc import Mapping
from typing import Any

ACTION_SPACE = "action_space"  # what the action numbers mean
CONTROL_RATE = "control_hz"  # steps a second of the demonstrations, or null
ENVIRONMENT_MADE = "environment_made"  # id and arguments of the environment, or null without one
INITIAL_CHECKPOINT = (
    "initial_checkpoint"  # of a fine-tuned policy: path as given, folder and sha256 of its first weights
)
NUMBER_NAMES = "number_names"  # observation key or "action" -> what the demonstrations call its numbers, if they do
SIMULATORS = "simulators"  # package -> version of what simulated the environment
TRAINED_EPISODES = "trained_episodes"  # hashes of the episodes trained on, for tasks without an environment


def number_name(metadata: Mapping[str, Any], key: str, number: int) -> str:
    """Return how to call a number of an observation or action: "action[gripper]", or "action[6]" if it has no name.

    Args:
        metadata: of a policy, perhaps of a file.
        key: the observation key, or "action".
        number: counted from 0.
    """
    named = metadata.get(NUMBER_NAMES)
    names = named.get(key) if isinstance(named, dict) else None
    return f"{key}[{names[number] if isinstance(names, list) and number < len(names) else number}]"
