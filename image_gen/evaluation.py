"""Scores of a generator: distance to the data, Inception Score, precision and recall, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from drift_policy.device import choose_device
from drift_policy.errors import ConfigurationError, require
from drift_policy.manifest import describe_run, write_json
from image_gen.artifacts.location import TRAINED_FOLDER
from image_gen.baselines.classifier import train_classifier
from image_gen.metrics.judges import ClassifierJudge, InceptionJudge, Judge, MaeJudge
from image_gen.metrics.statistics import frechet_distance, inception_score, moments_of, precision_recall
from image_gen.reference import Reference, judge_all, make_reference
from image_gen.sampling import Sampler, load_sampler
from image_gen.training.config import DataConfig
from image_gen.training.samples import RealSamples, open_samples

_MAE = "mae:"


@dataclass
class EvaluateConfig:
    """Settings of the evaluation."""

    ckpt: str  # run folder, folder of a generator, or hf://name
    dataset: DataConfig | None = None  # real images; null is what the generator was trained on
    reference: str | None = None  # .npz of statistics or images, or a folder: all images in it; null is the data set
    num_samples: int = 50000  # generated images, equally many of each class
    num_nearest: int = 3  # k of precision and recall
    num_manifold: int = 10000  # images of each side that precision and recall use; real ones are chosen at random
    splits: int = 10  # parts of the Inception Score
    network: str = "inception"  # "inception", "classifier" (trained on the data first), or "mae:<folder>"
    network_weights: str | None = None  # file of the Inception weights; null looks in the cache
    seed: int = 0  # of noise, styles, and the choice of real images for precision and recall
    cfg_scale: float = 1.0  # guidance scale
    flow_steps: int = 50  # network evaluations of a flow model
    device: str = "auto"  # "cpu", "cuda", ...; "auto" takes a GPU if there is one
    tokenizer: str | None = None  # space of the generator; null is as the training noted it
    tokenizer_weights: str | None = None  # folder of its weights
    output: str | None = None  # the JSON file; null is evaluation.json beside the checkpoint
    batch_size: int = 64  # images at once

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_nearest", "num_manifold", "splits", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}.")
        require(
            self.network in ("inception", "classifier") or self.network.startswith(_MAE),
            f"network must be inception, classifier or mae:<folder>, but is {self.network!r}.",
        )
        require(
            self.num_samples >= self.splits,
            f"num_samples={self.num_samples} cannot be split into {self.splits} parts.",
        )


def evaluate(config: EvaluateConfig, overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Score a generator, print the scores and write them; return what was written.

    Raises:
        UserError: anything the user has to change.
    """
    device = choose_device(config.device)
    sampler, metadata = load_sampler(
        config.ckpt,
        device,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        cfg_scale=config.cfg_scale,
        flow_steps=config.flow_steps,
    )
    data = _data_config(config, metadata)
    real = None if data is None else open_samples(data, seed=0)
    judge = make_judge(config.network, config.network_weights, data, device)
    reference = make_reference(config.reference, real, judge, sampler, config.batch_size, console)
    drawing = replace(sampler, tokenizer=None) if judge.space == "latents" else sampler
    scores = score(drawing, judge, reference, config, console)
    result = {
        **describe_run("image_gen/evaluate.py", overrides),
        "checkpoint": config.ckpt,
        "step": metadata.get("step"),
        "method": sampler.method,
        "evaluations_per_image": sampler.num_evaluations,
        "cfg_scale": config.cfg_scale,
        "seed": config.seed,
        "reference": {**reference.facts, "name": reference.name},
        "scores": scores,
    }
    path = Path(config.output) if config.output else beside(config.ckpt) / "evaluation.json"
    write_json(path, result)
    for name, value in scores.items():
        console.print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}", highlight=False)
    console.print(f"written  {path}", highlight=False, soft_wrap=True)
    return result


def score(
    sampler: Sampler, judge: Judge, reference: Reference, config: EvaluateConfig, console: Console
) -> dict[str, Any]:
    """Draw images and compare them with a reference.

    Returns:
        Names with the network in them: only Inception's distance is called FID. A network without classifier gives no
        Inception-like score and no accuracy.
    """
    class_ids = torch.arange(config.num_samples) % sampler.generator.config.num_classes
    images = sampler.stream(class_ids, config.seed, config.batch_size)
    judged = judge_all(judge, images, config.num_samples, "generated", console)
    distance = "FID" if judge.is_inception else f"Frechet distance in {judge.name} features"
    scores: dict[str, Any] = {distance: frechet_distance(moments_of(judged.features), reference.moments)}
    if judged.logits is not None:
        label = "Inception Score" if judge.is_inception else f"exp(KL) score by {judge.name}"
        mean, deviation = inception_score(judged.logits, config.splits)
        scores |= {label: mean, f"{label}, deviation over splits": deviation}
    if reference.features is not None:
        # Generated classes take turns, so the first images are of all of them; real images are often sorted by class.
        generated = judged.features[: config.num_manifold]
        real = random_rows(reference.features, config.num_manifold, config.seed)
        precision, recall = precision_recall(generated, real, config.num_nearest)
        scores |= {"precision": precision, "recall": recall}
    if judged.logits is not None and judge.knows_classes:
        scores["accuracy"] = float((judged.logits.argmax(dim=1) == class_ids).double().mean())
    return scores | {"network": judge.name, "num_samples": config.num_samples}


def make_judge(name: str, weights: str | None, data: DataConfig | None, device: torch.device) -> Judge:
    """Return the network of a name; a classifier is trained now, on the training images of the data set.

    Raises:
        ConfigurationError: a classifier without data in pixels.
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
    images, class_ids = load_all(real)
    return ClassifierJudge(train_classifier(images, class_ids, real.num_classes), data.name, device)


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


def _data_config(config: EvaluateConfig, metadata: dict[str, Any]) -> DataConfig | None:
    """Return the data set of the configuration or of the training, as it is without augmentation."""
    if config.dataset is not None:
        return replace(config.dataset, flip=False)
    trained_on = metadata.get("data_config")
    if not isinstance(trained_on, dict):
        return None
    return DataConfig(**trained_on | {"crop": "centre", "flip": False, "num_workers": 0})
