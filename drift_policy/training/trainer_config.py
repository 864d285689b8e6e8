"""How a policy is optimised; every field has a YAML counterpart in configs/trainer/."""

import math
from dataclasses import dataclass, field

from drift_policy.errors import require

PRECISIONS = ("float32", "tfloat32", "bfloat16")
SHARDINGS = ("none", "fsdp2")
PLACEMENTS = ("auto", "device", "stream")
ONE_POSITIVE = {
    "neighbours": 1,
    "time_shifts": 0,
    "positive_copies": 0,
}  # ways to several positives -> the value that leaves it at one


def require_betas(name: str, betas: list[float]) -> None:
    """Require AdamW's moment decays, of trainings of policies and of images.

    Raises:
        ConfigurationError: they are not two numbers in [0, 1).
    """
    require(
        len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        f"{name} must be two numbers in [0, 1), but is {betas}.",
    )


@dataclass
class TrainerConfig:
    """How a policy is optimised."""

    num_steps: int = 18000  # optimiser steps
    batch_size: int = 64  # observations in a step, over all processes; the drift head draws several samples for each
    gradient_accumulation_steps: int = 1  # parts a step is computed in, one after the other, to save memory
    learning_rate: float = 1e-3  # peak of the schedule
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW's moment decays
    weight_decay: float = 1e-6  # AdamW's decoupled decay
    warmup_steps: int = 200  # linear warm-up, followed by a cosine to zero
    gradient_clip: float | None = 2.0  # largest global gradient norm; null is no clipping
    ema_decay: float = 0.999  # decay of the averaged weights that are saved and evaluated
    observation_noise: float = 0.0  # standard deviation of noise on normalised observed numbers, an augmentation
    action_noise: float = 0.0  # standard deviation of noise on normalised demonstrated chunks, an augmentation
    neighbours: int = 1  # chunks that attract an observation's samples: its own, then those of the nearest observations
    neighbour_width: float = 0.1  # root mean square distance of normalised observations where weights fall to exp(-1/2)
    time_shifts: int = 0  # the chunks that begin up to so many steps earlier or later attract too, the farther the less
    positive_copies: int = 0  # copies of an observation's own chunk, displaced smoothly in time, that attract too
    positive_noise: float = 0.05  # standard deviation of that displacement, of normalised actions
    positive_noise_steps: float = 4.0  # steps after which its correlation has fallen to exp(-1/2)
    precision: str = "float32"  # "tfloat32" (GPU) or "bfloat16" (autocast): faster; the drift loss stays in float32
    compile: bool = False  # torch.compile the whole update, on a GPU with CUDA graphs; costs half a minute at the start
    sharding: str = "none"  # "fsdp2": several processes share one copy of weights, gradients and moments
    data_placement: str = "auto"  # "device": all data there; "stream": worker processes; "auto": "device" if they fit
    num_workers: int = 4  # worker processes that prepare streamed batches
    num_threads: int | None = None  # CPU threads; null leaves PyTorch's choice; another number may round otherwise
    val_ratio: float = 0.02  # share of the episodes that is held out
    max_train_episodes: int | None = None  # use only so many training episodes; null is all
    validation_windows: int = 256  # held-out windows whose action error is reported
    log_every: int = 100  # steps between rows of metrics.csv
    validate_every: int = 500  # steps between measurements of the held-out action error
    rollout_every: int = 3000  # steps between rollouts; 0 is never
    checkpoint_every: int = 1000  # steps between saves of the `last` checkpoint
    keep_best: int = 3  # checkpoints kept by rollout score, or by the error of held-out decisions without environment

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "gradient_accumulation_steps", "num_workers", "validation_windows")
        for name in (*positive, "neighbours", "log_every", "validate_every", "checkpoint_every", "keep_best"):
            require(getattr(self, name) >= 1, f"trainer.{name} must be at least 1, but is {getattr(self, name)}.")
        not_negative = ("warmup_steps", "rollout_every", "weight_decay", "observation_noise", "action_noise")
        for name in (*not_negative, "time_shifts", "positive_copies"):
            require(getattr(self, name) >= 0, f"trainer.{name} must not be negative, but is {getattr(self, name)}.")
        for name in ("neighbour_width", "positive_noise", "positive_noise_steps"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"trainer.{name} must be a positive number, but is {value}.")
        several = [f"trainer.{name}={getattr(self, name)}" for name in self._several_positives]
        require(len(several) < 2, f"{' and '.join(several)} cannot be combined: choose one kind of further positives.")
        require(self.learning_rate > 0, f"trainer.learning_rate must be positive, but is {self.learning_rate}.")
        require(
            self.gradient_clip is None or self.gradient_clip > 0,
            f"trainer.gradient_clip must be null or positive, but is {self.gradient_clip}.",
        )
        require(0 <= self.ema_decay < 1, f"trainer.ema_decay must be in [0, 1), but is {self.ema_decay}.")
        require_betas("trainer.betas", self.betas)
        require(0 <= self.val_ratio < 1, f"trainer.val_ratio must be in [0, 1), but is {self.val_ratio}.")
        for name, choices in (("precision", PRECISIONS), ("sharding", SHARDINGS), ("data_placement", PLACEMENTS)):
            value = getattr(self, name)
            require(value in choices, f"trainer.{name} must be one of {', '.join(choices)}, but is {value!r}.")
        for name in ("num_threads", "max_train_episodes"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"trainer.{name} must be null or at least 1, but is {value}.")

    @property
    def further_positives(self) -> str | None:
        """The setting that gives an observation more than one positive, or None."""
        return next(iter(self._several_positives), None)

    @property
    def _several_positives(self) -> list[str]:
        return [name for name, one in ONE_POSITIVE.items() if getattr(self, name) != one]
