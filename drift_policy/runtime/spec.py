"""What a policy expects and returns, as JSON: the metadata of an exported file and of a server. Needs numpy alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from drift_policy.errors import CheckpointError
from drift_policy.metadata_keys import TRAINED_EPISODES

FORMAT_VERSION = 1
METADATA_KEY = "drift_policy"  # under which an ONNX file's metadata_props hold the JSON
_LARGEST = 1 << 24  # of a size in a file or a message: beyond it, numbers are damaged


Chunks = TypeVar("Chunks")  # an array or a tensor


def executed_steps(chunks: Chunks, n_obs_steps: int, n_action_steps: int) -> Chunks:
    """Return the steps of chunks [B, Tp, Da] that a decision executes, [B, Ta, Da].

    A chunk begins with the oldest observation, so that its step To - 1 is the newest one's, the first to be executed.
    """
    first = n_obs_steps - 1
    steps: Chunks = chunks[:, first : first + n_action_steps]  # type: ignore[index]
    return steps


@dataclass(frozen=True)
class ObservationKey:
    """One key of an observation."""

    kind: str  # "state": a vector of numbers; "image": uint8, or float in 0..1
    shape: tuple[int, ...]  # of one step: (numbers,), or (channels, height, width)

    def __post_init__(self) -> None:
        dimensions = {"state": 1, "image": 3}.get(self.kind)
        if dimensions is None or len(self.shape) != dimensions or not all(_is_size(size) for size in self.shape):
            raise CheckpointError(
                f"An observation key of kind {self.kind!r} and shape {list(self.shape)} is not known."
            )


@dataclass(frozen=True)
class PolicySpec:
    """Sizes of a policy's decisions and the facts that travel with it.

    Raises:
        CheckpointError: sizes that no policy has.
    """

    observations: dict[str, ObservationKey]  # in the order of the policy's condition
    action_dim: int  # Da
    horizon: int  # Tp: steps of a prediction, the first observation step included
    n_obs_steps: int  # To
    n_action_steps: int  # Ta
    noise_scale: float  # factor on the noise of a decision
    num_evaluations: int = 1  # of the network, for one decision
    num_candidates: int = 1  # N: chunks drawn in them, the most typical of which is the decision
    mirrored: bool = False  # half of them answer to the mirror image of the observation
    metadata: dict[str, Any] = field(default_factory=dict)  # task, action space, data set
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        names = ("action_dim", "horizon", "n_obs_steps", "n_action_steps", "num_evaluations", "num_candidates")
        wrong = [name for name in names if not _is_size(getattr(self, name))]
        if wrong:
            raise CheckpointError(f"{wrong[0]} of a policy must be a positive number, not {getattr(self, wrong[0])!r}.")
        if not isinstance(self.mirrored, bool):
            raise CheckpointError(f"mirrored of a policy must be true or false, not {self.mirrored!r}.")
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise CheckpointError(
                f"A chunk of horizon {self.horizon} cannot hold {self.n_action_steps} actions after "
                f"{self.n_obs_steps} observations."
            )
        if not isinstance(self.noise_scale, (int, float)) or not 0 <= self.noise_scale < math.inf:
            raise CheckpointError(f"noise_scale of a policy must be a number from 0 on, not {self.noise_scale!r}.")
        if not self.observations:
            raise CheckpointError("A policy needs at least one observation key.")

    @property
    def last_observed(self) -> int:
        """Index in a prediction of the step of the newest observation: the first action that is executed."""
        return self.n_obs_steps - 1

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that a decision for one observation takes: [Tp, Da], or [N, Tp, Da] with N above 1."""
        single = (self.horizon, self.action_dim)
        return single if self.num_candidates == 1 else (self.num_candidates, *single)

    def to_json(self) -> str:
        """Return the inverse of `spec_from_json`."""
        return json.dumps(asdict(self), sort_keys=True)


def spec_from_json(text: str, where: str) -> PolicySpec:
    """Return the spec that `to_json` wrote.

    Args:
        text: the JSON.
        where: the file or server it comes from, for error messages.

    Raises:
        CheckpointError: it is not such JSON, or of another format version.
    """
    try:
        values = json.loads(text)
        version = values.pop("format_version")
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where} does not describe a policy: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format version {version!r}, but this release of drift-policy reads version {FORMAT_VERSION}. "
            "Use the release that wrote it, or export the checkpoint again."
        )
    try:
        keys = {
            str(key): ObservationKey(value["kind"], tuple(value["shape"]))
            for key, value in values.pop("observations").items()
        }
        return PolicySpec(observations=keys, **values)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where} does not describe a policy: {error!r}") from error


def describe_policy(policy: Any) -> PolicySpec:
    """Return the spec of an exported or remote policy, or make it from a PyTorch policy's configuration.

    Raises:
        TypeError: the object is no policy.
    """
    spec = getattr(policy, "spec", None)
    if isinstance(spec, PolicySpec):
        return spec
    config = getattr(policy, "config", None)
    if config is None:
        config = getattr(getattr(policy, "policy", None), "config", None)  # a wrapper, such as GraphedPolicy
    if config is None or not isinstance(getattr(config, "observations", None), Mapping):
        raise TypeError(f"{type(policy).__name__} is no policy: it has neither a spec nor a configuration.")
    owner = policy if hasattr(policy, "metadata") else policy.policy
    return PolicySpec(
        observations={key: ObservationKey(spec.kind, tuple(spec.shape)) for key, spec in config.observations.items()},
        action_dim=config.action_dim,
        horizon=config.horizon,
        n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
        noise_scale=config.noise_scale,
        num_evaluations=owner.num_evaluations,
        num_candidates=config.num_candidates,
        mirrored=config.mirrored,
        # What it was trained on is for evaluations, and may be long.
        metadata={name: fact for name, fact in owner.metadata.items() if name != TRAINED_EPISODES},
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST
