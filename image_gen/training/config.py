"""Configuration of image trainings. Every field has a YAML counterpart under configs/image_gen/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drift_policy.drift.validation import check_affinity_floor, check_temperatures
from drift_policy.errors import as_configuration_error, require
from drift_policy.training.logger_config import LoggerConfig
from drift_policy.training.trainer_config import PRECISIONS, SHARDINGS, require_betas
from image_gen.feature_maps import FeatureSettings
from image_gen.guidance import GuidanceLaw
from image_gen.memory_bank import STORAGE_TYPES
from image_gen.models.mae import MAE_SIZES

METHODS = ("drift", "flow")
ENCODERS = ("mae", "none")


@dataclass
class DataConfig:
    """Which images to train on, and in which space."""

    name: str = "digits"  # digits, fashion_mnist, cifar10, imagenette224, imagenet256 or folder
    path: str | None = None  # folder of the data set; null: the folder DRIFT_POLICY_DATA, then the cache
    split: str = "train"  # or val
    latents: str | None = None  # folder that cache_latents wrote; null encodes the images anew every time
    image_size: int | None = None  # side in pixels; null is the data set's own
    crop: str = "centre"  # or random_resized: a random rectangle of 20 % to 100 % of the area, resized
    flip: bool | None = None  # mirror half of the images; null does so if `latents` has mirrored ones, and else not
    tokenizer: str = "pixels"  # space of the generator: pixels, taef2 or sd_vae; a cache brings its own
    tokenizer_weights: str | None = None  # folder of the tokenizer's weights; null: the default ones
    num_workers: int = 0  # processes that read ahead; 0: none beside the training itself

    def __post_init__(self) -> None:
        require(self.num_workers >= 0, f"dataset.num_workers must not be negative, but is {self.num_workers}.")
        require(
            self.image_size is None or self.image_size >= 1,
            f"dataset.image_size must be null or at least 1, but is {self.image_size}.",
        )
        require(
            self.name != "folder" or self.image_size is not None or self.latents is not None,
            "dataset=folder has no size of its own: set dataset.image_size=..., the side in pixels that images are "
            "cropped to.",
        )


@dataclass
class OptimizerConfig:
    """How a network is optimised: AdamW, warm-up from 1e-6, then a constant rate, and an average of the weights."""

    num_steps: int = 1000  # optimiser steps
    max_seconds: float | None = None  # end earlier, after so much time in updates: to compare at equal time
    learning_rate: float = 4e-4  # after the warm-up
    warmup_steps: int = 100  # linear warm-up from 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # AdamW's moment decays
    weight_decay: float = 0.01  # AdamW's decoupled decay
    gradient_clip: float | None = 2.0  # largest global gradient norm; null is no clipping
    ema_decay: float = 0.999  # decay of the averaged weights that are saved and drawn from
    ema_warmup: bool = True  # raise the decay to that by (1 + n) / (10 + n) of n updates; false is the released code
    gradient_accumulation_steps: int = 1  # parts a step is computed in, to save memory; drift statistics are a part's
    precision: str = "float32"  # "bfloat16": networks in autocast, the drift loss in float32; "tfloat32": on GPUs
    activation_checkpointing: bool = False  # recompute the network's blocks in the backward pass: less memory
    compile: bool = False  # torch.compile the network and the drift loss; costs minutes at the start
    sharding: str = "none"  # "fsdp2": several processes share one copy of weights, gradients and moments
    num_threads: int | None = None  # CPU threads; null leaves PyTorch's choice
    log_every: int = 20  # steps between rows of metrics.csv
    sample_every: int = 500  # steps between pictures of samples; 0 is only at the end
    checkpoint_every: int = 500  # steps between saves

    def check(self, where: str) -> None:
        """Require settings that can work; `where` is what the user calls this part, as several have one.

        Raises:
            ConfigurationError: one cannot.
        """
        for name in ("num_steps", "gradient_accumulation_steps", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{where}.{name} must be at least 1, but is {getattr(self, name)}.")
        for name in ("warmup_steps", "sample_every", "weight_decay"):
            require(getattr(self, name) >= 0, f"{where}.{name} must not be negative, but is {getattr(self, name)}.")
        require(self.learning_rate > 0, f"{where}.learning_rate must be positive, but is {self.learning_rate}.")
        for name in ("gradient_clip", "max_seconds", "num_threads"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{where}.{name} must be null or positive, but is {value}.")
        require(0 <= self.ema_decay < 1, f"{where}.ema_decay must be in [0, 1), but is {self.ema_decay}.")
        require_betas(f"{where}.betas", self.betas)
        for name, choices in (("precision", PRECISIONS), ("sharding", SHARDINGS)):
            value = getattr(self, name)
            require(value in choices, f"{where}.{name} must be one of {', '.join(choices)}, but is {value!r}.")


@dataclass
class BankConfig:
    """The queues of real samples (appendix A.8)."""

    class_capacity: int = 128  # samples of each class
    unconditional_capacity: int = 1000  # samples of any class
    push_per_step: int = 64  # newest real samples that enter before each step, over all processes
    fill_steps: int = 3000  # pushes before the first step, and again when a run is resumed without saved queues
    storage: str = "float32"  # float32, bfloat16, float16, or uint8 (exact for images that were bytes)
    device: str = "auto"  # where the queues lie: auto is the training's own device
    save_limit_mb: float = 512.0  # queues up to this size are part of the checkpoint; larger ones are filled again

    def __post_init__(self) -> None:
        for name in ("class_capacity", "unconditional_capacity", "push_per_step", "fill_steps"):
            require(getattr(self, name) >= 1, f"drift.bank.{name} must be at least 1, but is {getattr(self, name)}.")
        require(
            self.storage in STORAGE_TYPES,
            f"drift.bank.storage must be one of {', '.join(STORAGE_TYPES)}, but is {self.storage!r}.",
        )


@dataclass
class DriftConfig:
    """One training step of the drifting model (appendix A.8 and Table 8)."""

    labels_per_step: int = 64  # N_c, classes (with repetition) over all processes; they are the newest samples' own
    samples_per_label: int = 64  # N_gen, generated samples of each label; they are also its negatives
    positives_per_label: int = 64  # N_pos, real samples of the label
    unconditional_per_label: int = 16  # N_unc, real samples of any class, as further negatives; 0 is none
    temperatures: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.2])  # kernel widths
    affinity_floor: float = 1e-6  # lower clip of affinities; the released code's, 0 is the paper's formula
    guidance: GuidanceLaw = field(default_factory=GuidanceLaw)  # of the scale alpha of each label
    bank: BankConfig = field(default_factory=BankConfig)  # where positives and unconditional negatives come from

    def __post_init__(self) -> None:
        for name in ("labels_per_step", "samples_per_label", "positives_per_label"):
            require(getattr(self, name) >= 1, f"drift.{name} must be at least 1, but is {getattr(self, name)}.")
        require(
            self.unconditional_per_label >= 0,
            f"drift.unconditional_per_label must not be negative, but is {self.unconditional_per_label}.",
        )
        require(
            self.unconditional_per_label > 0 or self.guidance.maximum == 1,
            "drift.unconditional_per_label=0 leaves nothing to guide with: set drift.guidance.maximum=1, or draw some.",
        )
        require(
            self.labels_per_step <= self.bank.push_per_step,
            f"drift.labels_per_step={self.labels_per_step} are the classes of the newest real samples, so "
            f"drift.bank.push_per_step={self.bank.push_per_step} must be at least as many.",
        )
        with as_configuration_error():
            check_temperatures("drift.temperatures", self.temperatures)
            check_affinity_floor("drift.affinity_floor", self.affinity_floor)


@dataclass
class MaeRecipe:
    """A masked autoencoder and its training (appendix A.4)."""

    model: dict[str, Any] = field(default_factory=dict)  # `name` of a size, and changes of its MaeConfig
    batch_size: int = 128  # images a step, over all processes
    mask_ratio: float = 0.5  # probability that a patch is hidden
    classification_weight: float = 0.1  # weight of the classifier's loss at the end of the training
    classification_steps: int = 0  # last steps in which the classifier is trained; 0 is none
    classification_ramp: int = 0  # steps in which its weight grows from 0
    # Optimisation; an autoencoder draws no samples.
    trainer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(sample_every=0))

    def check(self, where: str) -> None:
        """Require settings that can work; `where` is what the user calls this recipe.

        Raises:
            ConfigurationError: one cannot.
        """
        require(self.batch_size >= 1, f"{where}.batch_size must be at least 1, but is {self.batch_size}.")
        for name in ("mask_ratio", "classification_weight"):
            require(0 <= getattr(self, name) <= 1, f"{where}.{name} must be from 0 to 1, but is {getattr(self, name)}.")
        for name in ("classification_steps", "classification_ramp"):
            require(getattr(self, name) >= 0, f"{where}.{name} must not be negative, but is {getattr(self, name)}.")
        self.trainer.check(f"{where}.trainer")
        require(
            self.trainer.sample_every == 0,
            f"{where}.trainer.sample_every must be 0, but is {self.trainer.sample_every}: a masked autoencoder draws "
            "no samples.",
        )


@dataclass
class OwnEncoderConfig:
    """A network of the user as an encoder, such as SimCLR's or MoCo's; images are in [0, 1] before normalisation."""

    factory: str | None = None  # "module:function" that returns the network; null is none
    weights: str | None = None  # safetensors file with its tensors; null keeps those that the function gave it
    layers: list[str] = field(default_factory=list)  # names of its modules whose outputs are compared
    image_size: int | None = None  # side in pixels that images are resized to; null keeps them
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # subtracted from each channel
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # each channel is divided by it

    def __post_init__(self) -> None:
        require(
            self.factory is None or len(self.layers) > 0,
            f"feature.own.factory={self.factory} needs feature.own.layers=[...]: modules whose outputs are compared.",
        )
        require(
            self.factory is not None or (self.weights is None and not self.layers),
            "feature.own.weights and feature.own.layers are of a network: set feature.own.factory=module:function.",
        )
        require(
            len(self.mean) == len(self.std) and all(value > 0 for value in self.std),
            "feature.own.mean and feature.own.std must hold a number for each channel, those of std positive, but are "
            f"{self.mean} and {self.std}.",
        )


@dataclass
class FeatureConfig:
    """The features in which generated and real images are compared."""

    encoder: str = "mae"  # "none": the images or latents themselves are compared, as in a space without encoder
    mae: str | None = None  # folder or hf://name of a masked autoencoder; null trains `mae_training` on the data first
    mae_training: MaeRecipe = field(default_factory=MaeRecipe)  # used if `mae` is null
    convnext: str | None = None  # folder or hub name of ConvNeXt-V2, a second encoder; latents are decoded for it
    own: OwnEncoderConfig = field(default_factory=OwnEncoderConfig)  # one more encoder; latents are decoded for it
    compare_input: bool = True  # whether the flattened images or latents count as one more feature
    every_k_block: int = 2  # residual blocks whose output counts; 0 takes none
    use_mean: bool = True  # mean over all positions
    use_std: bool = True  # standard deviation over all positions
    patch_mean_size: list[int] = field(default_factory=lambda: [2, 4])  # sides of windows whose mean counts
    patch_std_size: list[int] = field(default_factory=lambda: [2, 4])  # sides of those whose standard deviation does
    chunk_size: int | None = None  # real images that go through the encoder at once; null is all
    activation_checkpointing: bool = False  # encode generated images again in the backward pass: far less memory
    checkpoint_size: int = 64  # images that are then encoded at once

    def __post_init__(self) -> None:
        self.mae_training.check("feature.mae_training")
        _ = self.of_maps  # requires them
        require(
            self.encoder in ENCODERS, f"feature.encoder must be one of {', '.join(ENCODERS)}, but is {self.encoder!r}."
        )
        require(
            self.chunk_size is None or self.chunk_size >= 1,
            f"feature.chunk_size must be null or at least 1, but is {self.chunk_size}.",
        )
        require(
            self.checkpoint_size >= 1, f"feature.checkpoint_size must be at least 1, but is {self.checkpoint_size}."
        )
        require(
            self.encoder != "none" or self.compare_input or self.convnext is not None or self.own.factory is not None,
            "feature.encoder=none, feature.compare_input=false, feature.convnext=null and feature.own.factory=null "
            "leave no feature: change one.",
        )

    @property
    def of_maps(self) -> FeatureSettings:
        """Which features of the encoders' maps count."""
        return FeatureSettings(
            every_k_block=self.every_k_block,
            use_mean=self.use_mean,
            use_std=self.use_std,
            patch_mean_size=list(self.patch_mean_size),
            patch_std_size=list(self.patch_std_size),
        )


@dataclass
class PictureConfig:
    """The picture of samples that a training draws."""

    classes: int = 10  # columns: the first classes of the data
    per_class: int = 10  # rows
    cfg_scale: float = 1.0  # guidance scale
    flow_steps: int = 50  # network evaluations of a flow model

    def __post_init__(self) -> None:
        for name in ("classes", "per_class", "flow_steps"):
            require(getattr(self, name) >= 1, f"picture.{name} must be at least 1, but is {getattr(self, name)}.")
        require(self.cfg_scale >= 1, f"picture.cfg_scale must be at least 1, but is {self.cfg_scale}.")


@dataclass
class RunConfig:
    """What both kinds of training have in common."""

    dataset: DataConfig  # what to train on
    name: str  # the run's folder is <output>/<dataset>/<name>
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0  # seed of weights, data order and noise
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one
    output: str = "runs/image_gen"  # folder of all runs
    # Go on with the run of this name from its last checkpoint; "auto" does so if there is one, and else starts.
    resume: bool | str = False
    write_config: str | None = None  # write the configuration to this JSON file and end: for image_gen.training.bare

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must not be negative, but is {self.seed}.")
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"name must be a plain folder name, but is {self.name!r}.",
        )


@dataclass
class MaeTrainConfig(RunConfig):
    """A whole training of a masked autoencoder."""

    mae: MaeRecipe = field(default_factory=MaeRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mae.check("mae")

    @property
    def trainer(self) -> OptimizerConfig:
        """How it is optimised."""
        return self.mae.trainer


@dataclass
class GeneratorTrainConfig(RunConfig):
    """A whole training of a generator."""

    method: str = "drift"  # or "flow": the same network by flow matching, to compare with
    model: dict[str, Any] = field(default_factory=lambda: {"name": "digits_tiny"})  # size and changes of DiTConfig
    drift: DriftConfig = field(default_factory=DriftConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    trainer: OptimizerConfig = field(default_factory=OptimizerConfig)
    picture: PictureConfig = field(default_factory=PictureConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trainer.check("trainer")
        for name, unset in (("sharding", "none"), ("num_threads", None)):
            of_mae, of_both = getattr(self.feature.mae_training.trainer, name), getattr(self.trainer, name)
            require(
                of_mae in (unset, of_both),
                f"feature.mae_training.trainer.{name}={of_mae}, but the autoencoder is trained by the same processes "
                f"as the generator: set trainer.{name}, which is {of_both}.",
            )
        require(self.method in METHODS, f"method must be one of {', '.join(METHODS)}, but is {self.method!r}.")
        trains_mae = self.method == "drift" and self.feature.encoder == "mae" and self.feature.mae is None
        require(
            not trains_mae or "name" in self.feature.mae_training.model,
            "feature.mae=null trains a masked autoencoder first, but the chosen model has no recipe for one: give "
            "feature.mae=<folder or hf://name>, or choose a recipe by mae@feature.mae_training=... "
            f"({', '.join(MAE_SIZES)}).",
        )
