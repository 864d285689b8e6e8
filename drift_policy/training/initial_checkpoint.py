"""Fine-tuning: a training that starts from the averaged weights and the normaliser of a checkpoint.

The inputs and outputs of a network are in the units of its normaliser, so weights and normaliser are taken over
together. Optimiser, average and step counter start anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from drift_policy.data.dataset import WindowDataset
from drift_policy.data.ranges import far_numbers
from drift_policy.encoders import ObservationSpec
from drift_policy.errors import require
from drift_policy.evaluation.evaluate import checkpoint_facts
from drift_policy.heads import head_kind
from drift_policy.metadata_keys import ACTION_SPACE, INITIAL_CHECKPOINT, TRAINED_EPISODES
from drift_policy.mirror import Mirror, fit_mirror, mirror_fits
from drift_policy.policy import Policy
from drift_policy.policy_config import IMAGE_SETTINGS, PolicyConfig
from drift_policy.serialization import load_policy, resolve_checkpoint
from drift_policy.task import Demonstrations, TaskConfig
from drift_policy.training.checkpoint import CheckpointStore
from drift_policy.training.folder_guard import differing_settings, setting_of
from drift_policy.training.trainer import TrainingData

Say = Callable[[str], None]
_CHOSEN_BY_NAME = ("head", "network", "image_backbone")
# Of networks: what is dropped in training, and how weights begin that are replaced here.
_FREE_OF_NETWORKS = ("dropout", "p_drop_emb", "p_drop_attn", "output_init_std")
# Of heads: what a time means that the network is told. Their other settings are those of the loss and of the sampler.
_BOUND_OF_HEADS = ("num_train_steps", "beta_schedule", "denoising_time")
_TOO_FAR = 1000.0  # nothing can be learned from these: the number hardly moved in the checkpoint's data


@dataclass(frozen=True)
class InitialCheckpoint:
    """What a training starts from."""

    policy: Policy  # on the CPU
    origin: Any  # the path as it was given, the name of the folder, and the sha256 of the model file
    is_new: bool  # whether the run starts now; one that is resumed has taken everything over before


def read_initial_checkpoint(ckpt: str | None, resumed: CheckpointStore | None) -> InitialCheckpoint | None:
    """Read what a training starts from, if it does not start from random weights.

    A run that is resumed has what it needs, normaliser and origin, in its own last checkpoint: the initial one may be
    gone.

    Args:
        ckpt: run folder, checkpoint folder, or hf://owner/name, as `load_policy` takes it; None starts from random
            weights.
        resumed: the checkpoints of the run if it is resumed.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a newer format.
    """
    if ckpt is None:
        return None
    if resumed is not None:
        policy = resumed.load_last_policy()
        return InitialCheckpoint(policy, policy.metadata.get(INITIAL_CHECKPOINT), is_new=False)
    folder = resolve_checkpoint(ckpt)
    policy = load_policy(folder)
    facts = checkpoint_facts(policy, folder)
    return InitialCheckpoint(policy, {"path": ckpt, "folder": facts["folder"], "sha256": facts["sha256"]}, is_new=True)


def start_from(
    initial: InitialCheckpoint,
    policy: Policy,
    data: TrainingData,
    task: TaskConfig,
    demonstrations: Demonstrations,
    say: Say,
) -> None:
    """Give a policy the weights, the normaliser and the mirror of a checkpoint, and say what is notable about it.

    Args:
        initial: the checkpoint.
        policy: as its configuration and its demonstrations made it. Its metadata say afterwards where its weights came
            from and, for a task without an environment, what these were trained on.
        data: the windows it will train on.
        task: what it is trained for.
        demonstrations: which the windows were cut from.
        say: where to report.

    Raises:
        ConfigurationError: the checkpoint is of a policy with another architecture or other actions, the new one
            mirrors observations and the demonstrations have no affine mirror, or a number lies a thousandfold outside
            the normaliser's range.
    """
    if initial.is_new:
        _check_fits(initial, policy.config, task)
        origin = initial.origin
        say(f"initial  weights and normaliser of {origin['path']}: {origin['folder']}, sha256 {origin['sha256'][:16]}")
    policy.set_normalizer(initial.policy.normalizer)
    _take_weights(policy, initial.policy)
    if policy.mirror is not None:
        _take_mirror(policy, policy.mirror, initial.policy.mirror, data.train, say)
    if initial.is_new:
        _note_range(initial.policy, data.train.stats_arrays(), policy.metadata, say)
    policy.metadata[INITIAL_CHECKPOINT] = initial.origin
    if TRAINED_EPISODES in policy.metadata:
        _take_trained_episodes(policy, initial.policy)
        if initial.is_new and data.validation is not None:
            _note_held_out(initial.policy, data.validation, demonstrations, say)


def _check_fits(initial: InitialCheckpoint, config: PolicyConfig, task: TaskConfig) -> None:
    """Require an architecture in which the weights mean the same, and the same actions."""
    given = initial.origin["path"]
    differences = _differences(config, initial.policy.config)
    require(
        not differences,
        f"initial_ckpt={given} does not fit: {'; '.join(differences)}. Give the settings of the checkpoint, or another "
        "checkpoint.",
    )
    trained = initial.policy.metadata.get(ACTION_SPACE, task.action_space)  # older checkpoints do not say
    require(
        trained == task.action_space,
        f"The actions of initial_ckpt={given} are {trained!r:.40}, but those of the task {task.name} are "
        f"{task.action_space!r} (task.action_space): give demonstrations with the actions of the checkpoint.",
    )


def _differences(ours: PolicyConfig, theirs: PolicyConfig) -> list[str]:
    """Name every setting in which two policies differ whose weights cannot be exchanged, with both values."""
    here, there = _architecture(ours), _architecture(theirs)
    names = differing_settings(here, there)
    for part in _CHOSEN_BY_NAME:
        if f"{part}.name" in names:  # the settings of two kinds of networks say nothing beside each other
            names = [name for name in names if name == f"{part}.name" or not name.startswith(f"{part}.")]
    found = [
        f"policy.{name} is {_shown(here, name)} here and {_shown(there, name)} in the checkpoint" for name in names
    ]
    orders = [list(config.observations) for config in (ours, theirs)]
    if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
        found.append(f"the order of policy.observations is {orders[0]} here and {orders[1]} in the checkpoint")
    return found


def _architecture(config: PolicyConfig) -> dict[str, Any]:
    """Return what two policies must share for the weights of one to mean the same in the other."""
    is_told_times = head_kind(config.head_name).head.time_conditioned
    free = (*_FREE_OF_NETWORKS, *(() if is_told_times else ("diffusion_step_embed_dim",)))
    values = config.to_mapping()
    return {
        **{name: values[name] for name in ("action_dim", "horizon", "n_obs_steps")},
        "observations": {key: _seen(spec) for key, spec in config.observations.items()},
        "head": {name: value for name, value in values["head"].items() if name in ("name", *_BOUND_OF_HEADS)},
        "network": {name: value for name, value in values["network"].items() if name not in free},
        **{name: values[name] for name in IMAGE_SETTINGS if name in values},
    }


def _seen(spec: ObservationSpec) -> str:
    """Describe an observation as the network sees it: a camera of another size may be scaled or cropped to fit."""
    if spec.kind == "state":
        return f"state {spec.shape}"
    return f"{spec.kind} {[spec.shape[0], *spec.input_size]}"


def _shown(described: Mapping[str, Any], name: str) -> str:
    """Return what stands under a dotted name, for a message."""
    value = setting_of(described, name)
    return "absent" if value is None else str(value)


def _take_weights(policy: Policy, initial: Policy) -> None:
    """Copy all weights but those of the loss that stand for other settings, and the mirror's numbers."""
    temperatures = [getattr(one.config.head, "temperatures", None) for one in (policy, initial)]
    own, theirs = policy.state_dict(), initial.state_dict()
    taken = {
        name: theirs[name]
        for name in own.keys() & theirs.keys()
        if not name.startswith("mirror.")
        # Learned temperatures are offsets from those that were configured.
        and (temperatures[0] == temperatures[1] or not name.startswith("head.") or name.startswith("head.network."))
    }
    policy.load_state_dict(own | taken)


def _take_mirror(policy: Policy, mirror: Mirror, given: Mirror | None, windows: WindowDataset, say: Say) -> None:
    """Take over a checkpoint's mirror, whose numbers are those of its normaliser, or fit one where it has none."""
    if given is not None:
        mirror.load_state_dict(given.state_dict())
        if mirror_fits(policy, windows):
            return
        say("note     the checkpoint's mirror is not that of these demonstrations: it is fitted anew")
    fit_mirror(policy, windows)


def _note_range(initial: Policy, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any], say: Say) -> None:
    """Say which number of the demonstrations lies farthest outside the range of the normaliser, if any lies far.

    One that was constant in the checkpoint's data may have any scale: refused rather than told if it moves now.

    Args:
        initial: the policy with the normaliser.
        arrays: key -> every step of the demonstrations, [N, D].
        metadata: of the policy that is trained, which may name the numbers.
        say: where to report.
    """
    far = far_numbers(initial.normalizer, arrays, metadata)
    if far:
        require(
            max(far)[0] <= _TOO_FAR,
            f"The checkpoint's normaliser, which a fine-tuning keeps, makes {max(far)[0]:.1g} of numbers that should "
            f"be within -1 and 1: {max(far)[1]}. Give demonstrations in the units of the checkpoint, in which what it "
            "knows as constant is constant, or train anew.",
        )
        count = sum(array.shape[1] for array in arrays.values())
        say(
            f"note     {len(far)} of {count} numbers of the demonstrations lie far outside the checkpoint's "
            f"normaliser, which is kept: {max(far)[1]}"
        )


def _take_trained_episodes(policy: Policy, initial: Policy) -> None:
    """Count what the checkpoint was trained on as trained on; one of a task with an environment does not say it."""
    own = policy.metadata[TRAINED_EPISODES]
    known = set(own)
    policy.metadata[TRAINED_EPISODES] = [*own, *(name for name in _trained_episodes(initial) if name not in known)]


def _note_held_out(initial: Policy, held_out: WindowDataset, demonstrations: Demonstrations, say: Say) -> None:
    """Say whether the checkpoint was trained on episodes that are held out now."""
    earlier = set(_trained_episodes(initial))
    if not earlier:
        return
    hashes = demonstrations.buffer.episode_hashes()
    numbers = np.unique(held_out.episodes)
    known = sum(hashes[number] in earlier for number in numbers)
    if known:
        say(
            f"note     the checkpoint was trained on {known} of the {len(numbers)} held-out episodes: errors on them "
            "flatter"
        )


def _trained_episodes(initial: Policy) -> list[str]:
    named = initial.metadata.get(TRAINED_EPISODES)
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
