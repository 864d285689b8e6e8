"""Scores of a generator: distance to the data, Inception Score, precision and recall, accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from drift_policy.device import choose_device
from drift_policy.errors import ConfigurationError, DataError, require
from drift_policy.manifest import describe_run, write_json
from drift_policy.result_files import keep_earlier, require_writable
from image_gen.artifacts.digest import weights_digest
from image_gen.artifacts.location import TRAINED_FOLDER
from image_gen.baselines.classifier import train_classifier
from image_gen.metrics.judges import ClassifierJudge, InceptionJudge, Judge, MaeJudge
from image_gen.metrics.statistics import frechet_distance, inception_score, moments_of, precision_recall
from image_gen.reference import Reference, judge_all, make_reference, require_reference
from image_gen.sampling import Sampler, load_sampler, require_seed
from image_gen.training.config import DataConfig
from image_gen.training.samples import RealSamples, open_samples

_MAE = "mae:"
_NOT_COMPARED = ("ckpt", "device", "output")  # settings that say where, not what; the weights are compared themselves


@dataclass
class EvaluateConfig:
    """Settings of the evaluation."""

    ckpt: str  # run folder, folder of a generator, or hf://name
    dataset: DataConfig | None = None  # real images; null is what the generator was trained on
    reference: str | None = None  # .npz of statistics or images, or a folder: all images in it; null is the data set
    num_samples: int = 50000  # generated images, equally many of each class
    num_nearest: int = 3  # k of precision and recall
    # Real images that precision and recall use at most, chosen at random; all generated ones count, as is published.
    num_manifold: int = 10000
    splits: int = 10  # parts of the Inception Score
    network: str = "inception"  # "inception", "classifier" (trained on the data first), or "mae:<folder>"
    network_weights: str | None = None  # file of the Inception weights; null looks in the cache
    seed: int = 0  # of noise, styles, and the choice of real images for precision and recall
    cfg_scale: Any = 1.0  # guidance scale of a drifting model, or a list of them, of which the best is marked
    flow_steps: int = 50  # network evaluations of a flow model
    device: str = "auto"  # "cpu", "cuda", ...; "auto" takes a GPU if there is one
    tokenizer: str | None = None  # space of the generator; null is as the training noted it
    tokenizer_weights: str | None = None  # folder of its weights
    # The JSON file, written anew. Null is evaluation.json beside the checkpoint; an earlier result there of other
    # weights or settings is kept as evaluation_1.json, evaluation_2.json, ...
    output: str | None = None
    batch_size: int = 64  # images at once

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_nearest", "num_manifold", "splits", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}.")
        require(
            self.network in ("inception", "classifier") or self.network.startswith(_MAE),
            f"network must be inception, classifier or mae:<folder>, but is {self.network!r}.",
        )
        require(
            self.network_weights is None or self.network == "inception",
            f"network_weights={self.network_weights} are Inception's, but network={self.network}: leave them out.",
        )
        require(
            self.num_samples >= self.splits,
            f"num_samples={self.num_samples} cannot be split into {self.splits} parts.",
        )
        for name in ("num_samples", "num_manifold"):
            require(
                getattr(self, name) > self.num_nearest,
                f"{name}={getattr(self, name)} must be more than num_nearest={self.num_nearest}: each image's nearest "
                "others are looked for.",
            )
        require_seed(self.seed)
        given = self._given_scales
        numbers = [scale for scale in given if isinstance(scale, (int, float)) and not isinstance(scale, bool)]
        require(
            len({*numbers}) == len(given) > 0 and all(1 <= scale < math.inf for scale in numbers),
            f"cfg_scale must be a number of at least 1, or a list of different ones such as [1.0,1.5,2.0], but is "
            f"{self.cfg_scale!r}.",
        )

    @property
    def scales(self) -> list[float]:
        """The guidance scales."""
        return [float(scale) for scale in self._given_scales]

    @property
    def _given_scales(self) -> list[Any]:
        return self.cfg_scale if isinstance(self.cfg_scale, list) else [self.cfg_scale]


def require_named(dataset: Mapping[str, Any] | None) -> None:
    """Require that settings of the data name a data set, as +dataset.split=val does not; None is the generator's own.

    Raises:
        ConfigurationError: they do not, and would be of the default one.
    """
    require(
        dataset is None or "name" in dataset,
        f"dataset.{next(iter(dataset or ['name']))}=... is a setting of no data set: name the one to compare with, "
        "dataset=<name>, before.",
    )


def evaluate(config: EvaluateConfig, overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Score a generator, print the scores and write them; return what was written.

    Of several guidance scales, `cfg_scale` and `scores` are those with the smallest distance; `sweep` has all.

    Raises:
        UserError: anything the user has to change.
    """
    path = Path(config.output) if config.output else beside(config.ckpt) / "evaluation.json"
    require_writable(path)
    started = describe_run("image_gen/evaluate.py", overrides)
    device = choose_device(config.device)
    require_reference(config.reference)
    sampler, metadata = load_sampler(
        config.ckpt,
        device,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        cfg_scale=max(config.scales),  # a flow model refuses any above 1
        flow_steps=config.flow_steps,
    )
    data = _data_config(config, metadata)
    # A given reference takes the place of the data, which need not be there then.
    real = None if data is None or config.reference is not None else open_samples(data, seed=0)
    judge = make_judge(config.network, config.network_weights, data, device, sampler.image_channels)
    drawing = replace(sampler, tokenizer=None) if judge.space == "latents" else sampler
    _require_channels(config.network, judge.space, judge.channels, drawing.image_channels)
    reference = make_reference(config.reference, real, judge, sampler, config.batch_size, console)
    _say_what_is_left_out(judge, sampler, console)
    sweep: list[dict[str, Any]] = [
        {"cfg_scale": scale, "scores": score(replace(drawing, cfg_scale=scale), judge, reference, config, console)}
        for scale in config.scales
    ]
    best = min(sweep, key=lambda one: one["scores"][distance_name(judge)])
    result = {
        **started,
        "checkpoint": config.ckpt,
        "weights_sha256": weights_digest(sampler.generator),
        "settings": {name: value for name, value in asdict(config).items() if name not in _NOT_COMPARED},
        "step": metadata.get("step"),
        "method": sampler.method,
        "evaluations_per_image": sampler.num_evaluations,
        "seed": config.seed,
        "reference": {**reference.facts, "name": reference.name},
        **best,
        **({"sweep": sweep} if len(sweep) > 1 else {}),
    }
    # A file that the user names is replaced.
    kept = None if config.output else keep_earlier(path, path, result, ("weights_sha256", "settings"))
    write_json(path, result)
    _print_scores(sweep, best, distance_name(judge), console)
    if kept is not None:
        console.print(f"kept     the earlier evaluation, of other weights or settings: {kept}", highlight=False)
    console.print(f"written  {path}", highlight=False, soft_wrap=True)
    return result


def score(
    sampler: Sampler, judge: Judge, reference: Reference, config: EvaluateConfig, console: Console
) -> dict[str, Any]:
    """Draw images and compare them with a reference.

    Returns:
        Names with the network in them: only Inception's distance is called FID. A network without classifier gives no
        Inception-like score and no accuracy; one of other classes than the generator's gives no accuracy either.

    Raises:
        ConfigurationError: the generator's images give features that are not finite.
        DataError: the reference has too few images for precision and recall.
    """
    if reference.features is not None and len(reference.features) <= config.num_nearest:
        raise DataError(
            f"{reference.name} has {len(reference.features)} images, but precision and recall need more than "
            f"num_nearest={config.num_nearest}: give a reference with more, or lower num_nearest."
        )
    class_ids = torch.arange(config.num_samples) % sampler.generator.config.num_classes
    images = sampler.stream(class_ids, config.seed, config.batch_size)
    judged = judge_all(judge, images, config.num_samples, "generated", console)
    try:
        moments = moments_of(judged.features)
    except ValueError as error:
        raise ConfigurationError(f"The generated images cannot be judged. {error} Take another ckpt.") from error
    scores: dict[str, Any] = {distance_name(judge): frechet_distance(moments, reference.moments)}
    if judged.logits is not None:
        label = "Inception Score" if judge.is_inception else f"exp(KL) score by {judge.name}"
        mean, deviation = inception_score(judged.logits, config.splits)
        scores |= {label: mean, f"{label}, deviation over splits": deviation}
    if reference.features is not None:
        real = random_rows(reference.features, config.num_manifold, config.seed)
        # On the generator's device: 50,000 generated images have 2.5 billion distances among themselves.
        generated, real = judged.features.to(sampler.device), real.to(sampler.device)
        precision, recall = precision_recall(generated, real, config.num_nearest)
        scores |= {"precision": precision, "recall": recall}
    if judged.logits is not None and judge.classes is not None and foreign_classes(judge, sampler) is None:
        scores["accuracy"] = float((judged.logits.argmax(dim=1) == class_ids).double().mean())
    return scores | {"network": judge.name, "num_samples": config.num_samples}


def distance_name(judge: Judge) -> str:
    """Return what scores call the distance in the features of a network."""
    return "FID" if judge.is_inception else f"Frechet distance in {judge.name} features"


def foreign_classes(judge: Judge, sampler: Sampler) -> str | None:
    """Say how the classes of a network differ from the generator's; None if they do not, or if it has none."""
    return None if judge.classes is None else judge.classes.difference(sampler.classes)


def make_judge(
    name: str, weights: str | None, data: DataConfig | None, device: torch.device, channels: int | None = None
) -> Judge:
    """Return the network of a name; a classifier is trained now, on the training images of the data set.

    Args:
        name: "inception", "classifier" or "mae:<folder>".
        weights: file of the Inception weights.
        data: of the classifier.
        device: where to judge.
        channels: of the images that a classifier shall judge, asked before it is trained; None asks nothing.

    Raises:
        ConfigurationError: a classifier without data in pixels, or of other channels.
        CheckpointError: weights are missing.
    """
    if name == "inception":
        return InceptionJudge(weights, device)
    if name.startswith(_MAE):
        return MaeJudge(name.removeprefix(_MAE), device)
    if data is None or data.tokenizer != "pixels" or data.latents is not None:
        raise ConfigurationError(
            "network=classifier is trained on images, but the generator's data are latents or unknown: set "
            "dataset=..., or network=inception or mae:<folder>."
        )
    real = open_samples(replace(data, split="train"), seed=0)
    _require_channels(name, "pixels", real.sample_shape[0], channels)
    images, class_ids = load_all(real)
    classifier = train_classifier(images, class_ids, real.num_classes)
    return ClassifierJudge(classifier, data.name, device, real.class_names)


def _require_channels(network: str, space: str, taken: int | None, drawn: int | None) -> None:
    require(
        taken is None or drawn is None or taken == drawn,
        f"network={network} takes {space} of {taken} channels, but the generator draws {drawn}: give one that was "
        "trained on the generator's data.",
    )


def load_all(real: RealSamples) -> tuple[Tensor, Tensor]:
    """Return all samples [N, C, H, W] and classes [N] of a small data set."""
    images, class_ids = zip(*(real.dataset[index] for index in range(len(real.dataset))), strict=True)
    return torch.stack(images), torch.tensor(class_ids)


def random_rows(features: Tensor, number: int, seed: int) -> Tensor:
    """Return a seeded random choice of rows without replacement, in their order; all of them if there are no more.

    Args:
        features: [M, D].
        number: of rows.
        seed: of the choice.

    Returns:
        [min(M, number), D].
    """
    if len(features) <= number:
        return features
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:number]
    return features[chosen.sort().values]


def beside(ckpt: str) -> Path:
    """Return the folder for results about a checkpoint: its run's, or the working folder for hf:// names."""
    folder = Path(ckpt)
    if not folder.is_dir():
        return Path()
    return folder.parent.parent if folder.as_posix().endswith(TRAINED_FOLDER) else folder


def _say_what_is_left_out(judge: Judge, sampler: Sampler, console: Console) -> None:
    foreign = foreign_classes(judge, sampler)
    if foreign is not None:
        console.print(f"accuracy is left out: {judge.name} tells other classes apart, {foreign}", highlight=False)


def _print_scores(sweep: list[dict[str, Any]], best: dict[str, Any], distance: str, console: Console) -> None:
    """Print the scores; of several guidance scales one row each before, and which is the best."""
    if len(sweep) > 1:
        _print_sweep(sweep, best, distance, console)
    for name, value in best["scores"].items():
        console.print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}", highlight=False)


def _print_sweep(sweep: list[dict[str, Any]], best: dict[str, Any], distance: str, console: Console) -> None:
    """Print one row a guidance scale, and which is the best."""
    columns = [name for name in (distance, "precision", "recall", "accuracy") if name in best["scores"]]
    table = Table("cfg_scale", *("distance" if name == distance else name for name in columns), "")
    for one in sweep:
        numbers = (f"{one['scores'][name]:.4g}" for name in columns)
        table.add_row(f"{one['cfg_scale']:g}", *numbers, "best" if one is best else "")
    console.print(table)
    console.print(f"best     cfg_scale={best['cfg_scale']:g}, by the distance; its scores:", highlight=False)


def _data_config(config: EvaluateConfig, metadata: dict[str, Any]) -> DataConfig | None:
    """Return the data set of the configuration or of the training, as it is without augmentation."""
    if config.dataset is not None:
        return replace(config.dataset, flip=False)
    trained_on = metadata.get("data_config")
    if not isinstance(trained_on, dict):
        return None
    return DataConfig(**trained_on | {"crop": "centre", "flip": False, "num_workers": 0})
