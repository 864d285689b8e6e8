"""Configuration of a training run. Every field has a YAML counterpart under configs/."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from drift_policy.errors import require
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.task import TaskConfig
from drift_policy.training.logger_config import LoggerConfig
from drift_policy.training.trainer_config import TrainerConfig


@dataclass
class RolloutConfig(EvaluationConfig):
    """Rollouts while training, to choose checkpoints: on twice the episodes of a test, from other start states."""

    section: ClassVar[str] = "rollout"
    n_episodes: int = 100
    start_seed: int = 200000


@dataclass
class TrainConfig:
    """A whole training run."""

    task: TaskConfig  # demonstrations and environment
    policy: dict[str, Any]  # see drift_policy.policy_config; sizes are filled in from the task
    name: str  # the run's folder is <output>/<task>/<name>
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)  # while training
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # at the end, the reported score
    seed: int = 0  # seed of weights, data order and noise
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one
    output: str = "runs"  # folder of all runs
    data_path: str | None = None  # the demonstrations themselves, instead of searching for them
    # Weights and normaliser to start from, as `load_policy` takes it: run folder, checkpoint folder, or hf://owner/name.
    initial_ckpt: str | None = None  # None starts from random weights, and from the demonstrations' own normaliser
    allow_download: bool = True  # whether the original data set may be fetched from its site
    # Go on with the run of this name from its last checkpoint; "auto" does so if there is one, and else starts.
    resume: bool | str = False
    plugins: list[str] = field(default_factory=list)  # modules to import first, for example image backbones of yours
    video_episodes: int = 8  # episodes filmed at the end, beside the action fan; 0 is neither, and renders nothing

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must not be negative, but is {self.seed}.")
        require(self.video_episodes >= 0, f"video_episodes must not be negative, but is {self.video_episodes}.")
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"name must be a plain folder name, but is {self.name!r}.",
        )
