"""The configuration of a policy, and its conversion from and to JSON-ready mappings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from drift_policy.candidates import can_be_halved
from drift_policy.config import parse_choice, parse_config, with_defaults
from drift_policy.encoders import ObservationSpec
from drift_policy.encoders.backbones import backbone_kind
from drift_policy.encoders.backbones.resnet18 import Resnet18Config
from drift_policy.errors import ConfigurationError, require
from drift_policy.heads import head_kind
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import network_kind
from drift_policy.networks.mlp import MlpConfig

ACTION = "action"  # key of the demonstrated actions in a batch and in the normaliser
POSITIVES = "positives"  # key of several chunks an observation in a batch
POSITIVE_WEIGHTS = "positive_weights"  # and of their weights

# The parts of a policy that are chosen by name, and how a name is looked up.
_PARTS: dict[str, Callable[[str], Any]] = {
    "head": head_kind,
    "network": network_kind,
    "image_backbone": backbone_kind,
}
_OPTIONAL_PARTS = ("image_backbone",)  # a policy without cameras does not say which
IMAGE_SETTINGS = ("image_backbone", "share_image_backbone")  # of policies with cameras alone
_SWITCHES = ("share_image_backbone", "mirrored")
_NOT_OF_TASKS = ("noise_scale", "num_candidates", *_SWITCHES)  # plain settings that are no sizes


@dataclass
class PolicyConfig:
    """Everything that rebuilds a policy: sizes, head and network. Tasks set defaults of their own, in configs/task."""

    action_dim: int  # Da: numbers in one action
    observations: dict[str, ObservationSpec]  # what an observation consists of
    horizon: int = 16  # Tp: steps of a predicted chunk, the first observation step included
    n_obs_steps: int = 2  # To: observations that a decision sees
    n_action_steps: int = 8  # Ta: steps of a chunk that are executed before the next decision
    noise_scale: float = 1.0  # factor on the noise at test time; training always uses 1
    num_candidates: int = 1  # chunks drawn for a decision in one batched evaluation; the most typical one is executed
    mirrored: bool = False  # half of the candidates answer to the observation's mirror image; see drift_policy.mirror
    head_name: str = "drift"  # how a chunk is drawn, a key of drift_policy.heads.HEADS
    head: Any = field(default_factory=DriftHeadConfig)  # settings of that head
    network_name: str = "mlp"  # the generator, a key of drift_policy.networks.NETWORKS
    network: Any = field(default_factory=MlpConfig)  # settings of that network
    image_backbone_name: str = "resnet18"  # network of the images, a key of drift_policy.encoders.IMAGE_BACKBONES
    image_backbone: Any = field(default_factory=Resnet18Config)  # settings of that network
    share_image_backbone: bool = False  # one network for all cameras instead of one each

    def __post_init__(self) -> None:
        for name in ("action_dim", "horizon", "n_obs_steps", "n_action_steps", "num_candidates"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"policy.{name} must be at least 1, but is {getattr(self, name)}.")
        last = self.n_obs_steps - 1 + self.n_action_steps
        if last > self.horizon:
            raise ConfigurationError(
                f"A chunk of horizon {self.horizon} ends before its executed steps: n_obs_steps - 1 + n_action_steps "
                f"= {last}. Choose horizon >= {last} or fewer action steps."
            )
        if not self.observations:
            raise ConfigurationError("policy.observations is empty: a policy needs at least one observation key.")
        if ACTION in self.observations:
            raise ConfigurationError(f"policy.observations.{ACTION} would hide the predicted actions: rename that key.")
        for key, spec in self.observations.items():
            if not isinstance(spec, ObservationSpec):
                raise ConfigurationError(
                    f"policy.observations.{key} must be an ObservationSpec, but is a {type(spec).__name__}: give "
                    "ObservationSpec(shape=[numbers]), or for a camera ObservationSpec(kind='image', shape=[C, H, W])."
                )
        if not 0 <= self.noise_scale < math.inf:
            raise ConfigurationError(f"policy.noise_scale must be a number from 0 on, but is {self.noise_scale}.")
        self._check_mirrored()
        for part, find in _PARTS.items():
            config = find(getattr(self, f"{part}_name")).config
            settings = getattr(self, part)
            if not isinstance(settings, config):
                raise ConfigurationError(
                    f"policy.{part} {getattr(self, f'{part}_name')!r} needs a {config.__name__}, "
                    f"but has a {type(settings).__name__}."
                )

    def _check_mirrored(self) -> None:
        if not self.mirrored:
            return
        require(not self.has_images, "policy.mirrored=true is for observations without images: set it to false.")
        require(
            can_be_halved(self.num_candidates),
            f"policy.mirrored=true takes half of the candidates from each side, so policy.num_candidates must be even, "
            f"but is {self.num_candidates}: change it, or set policy.mirrored=false.",
        )

    @property
    def has_images(self) -> bool:
        """Whether any observation key is an image."""
        return any(spec.kind == "image" for spec in self.observations.values())

    def to_mapping(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values; the inverse of `policy_config_from_mapping`."""
        values = asdict(self)
        for part in _PARTS:
            values[part] = {"name": values.pop(f"{part}_name"), **values[part]}
        if not self.has_images:
            values = {key: value for key, value in values.items() if key not in IMAGE_SETTINGS}
        return values


def policy_config_from_mapping(values: Mapping[str, Any]) -> PolicyConfig:
    """Return the policy configuration that `values` describe.

    Args:
        values: the fields of `PolicyConfig`; "head", "network" and "image_backbone" are mappings with a "name" and
            settings. "image_backbone" may be left out.

    Raises:
        ConfigurationError: an unknown or missing key, an unknown name, a value that does not fit.
    """
    settings = dict(values)
    parts: dict[str, Any] = {}
    for part, find in _PARTS.items():
        if part in settings or part not in _OPTIONAL_PARTS:
            name, part_settings = parse_choice(settings.pop(part, {}), f"policy.{part}")
            parts |= {f"{part}_name": name, part: parse_config(find(name).config, part_settings, f"policy.{part}")}
    known = PolicyConfig.__dataclass_fields__.keys() - {*_PARTS, *(f"{part}_name" for part in _PARTS)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigurationError(f"policy.{unknown[0]} does not exist; expected some of {', '.join(sorted(known))}.")
    missing = sorted({"action_dim", "observations"} - settings.keys())
    if missing:
        raise ConfigurationError(f"policy.{missing[0]} has no value.")
    observations = {
        key: parse_config(ObservationSpec, spec, f"policy.observations.{key}")
        for key, spec in settings.pop("observations").items()
    }
    return PolicyConfig(observations=observations, **parts, **_typed(settings))


def usual_noise_scale(head_name: str) -> float:
    """Return the factor on the noise at test time that configs/policy gives a policy with this head.

    That is half for the drift head, which is more precise so, and all of it for the others: a sampler that starts
    from less noise than it was trained on misses the distribution.
    """
    return 0.5 if head_name == "drift" else 1.0


def require_constant_loss(config: PolicyConfig, loop: str) -> None:
    """Refuse a loss that changes with the step, for training loops that ask for the loss of a batch alone.

    Args:
        config: of the policy.
        loop: whose loop it is, for the message.

    Raises:
        ConfigurationError: the regression's weight falls with the step.
    """
    steps = getattr(config.head, "regression_steps", None)  # of the drift head alone
    require(
        steps is None,
        f"regression_steps={steps} of the head makes the loss change with the step, which {loop} does not tell its "
        "policies: leave it out, for a regression_weight that stays as it is.",
    )


def with_policy_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings of a policy, as `policy_config_from_mapping` takes them, with what they lack.

    That is what settings that are younger than they are had been before, as for a checkpoint. Sizes are left as they
    are, because those that are absent are the task's.
    """
    defaults: dict[str, Any] = {name: PolicyConfig.__dataclass_fields__[name].default for name in _NOT_OF_TASKS}
    filled = defaults | dict(values)
    for part, find in _PARTS.items():
        if part in filled:
            name, settings = parse_choice(filled[part], f"policy.{part}")
            filled[part] = {"name": name, **with_defaults(find(name).config, settings)}
    return filled


def _typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the plain numbers and switches of a policy configuration."""
    typed: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _SWITCHES:
            if not isinstance(value, bool):
                raise ConfigurationError(f"policy.{key} must be true or false, but is {value!r}.")
            typed[key] = value
            continue
        number = (int, float) if key == "noise_scale" else (int,)
        if isinstance(value, bool) or not isinstance(value, number):
            raise ConfigurationError(f"policy.{key} must be a number, but is {value!r}.")
        typed[key] = value
    return typed
