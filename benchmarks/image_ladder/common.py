"""What the studies share: configurations, short trainings, the judge, and results."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from rich.console import Console

from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.errors import UserError
from drift_policy.manifest import describe_run, write_json
from drift_policy.training.curves import plot_curves
from drift_policy.training.display import TrainingDisplay
from image_gen.baselines.classifier import train_classifier
from image_gen.evaluation import EvaluateConfig, load_all, score
from image_gen.metrics.judges import ClassifierJudge
from image_gen.metrics.statistics import frechet_distance, moments_of
from image_gen.pictures import draw_grid, write_png
from image_gen.reference import Reference, judge_all
from image_gen.sampling import load_sampler
from image_gen.training.config import DataConfig, GeneratorTrainConfig, MaeTrainConfig
from image_gen.training.drift_objective import LossOfFeatures, drifting_loss
from image_gen.training.run import Surroundings, train_generator, train_mae
from image_gen.training.run_folder import check_settings, course_of, run_folder
from image_gen.training.samples import open_samples

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "image_gen"
RESULTS = ROOT / "results" / "image_gen"
CPU = torch.device("cpu")
_NOT_USED = "It is not the one that these settings train."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every study takes."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of weights, data order and noise")
    parser.add_argument("--runs", type=Path, default=Path("runs/image_ladder"), help="folder of the trainings")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--num-samples", type=int, default=5000, help="images that are judged")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "overrides", nargs="*", help="settings of configs/image_gen/train.yaml, such as trainer.num_steps=200"
    )


def configuration(program: str, overrides: Sequence[str]) -> GeneratorTrainConfig | MaeTrainConfig:
    """Compose configs/image_gen/train.yaml or train_mae.yaml.

    Raises:
        ConfigurationError: a setting that does not exist or does not fit.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(program, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(deepcopy(cfg))  # the name of a run asks it which model was chosen
    with open_dict(cfg):
        del cfg["hydra"]
    if program == "train":
        return parse_config(GeneratorTrainConfig, resolved(cfg))
    return parse_config(MaeTrainConfig, resolved(cfg))


@dataclass
class Judged:
    """The judge of the digits and what it says about real images."""

    judge: ClassifierJudge
    reference: Reference
    held_out: dict[str, float]  # the same scores of real images that were not trained on


class Study:
    """Trains and judges on the digits.

    Args:
        given: arguments, see `add_arguments`.
        script: the program as python is given it.
        arguments: its command line.
        console: where to report.
    """

    def __init__(self, given: argparse.Namespace, script: str, arguments: Sequence[str], console: Console) -> None:
        torch.set_num_threads(given.threads)
        self.given, self.console = given, console
        self._script, self._arguments = script, list(arguments)
        self._facts = describe_run(script, arguments)  # now: the checkout may move on while trainings go on
        self.judged = judge_digits(console)

    def common_mae(self) -> str:
        """Train the masked autoencoder that all runs compare in, or find it; return its folder.

        One that is unfinished, or of other settings or data, is trained anew.
        """
        chosen = [text for text in self.given.overrides if text.lstrip("+").startswith("feature.mae_training.")]
        own = [text.replace("feature.mae_training", "mae") for text in chosen]
        config = configuration("train_mae", [f"output={self.given.runs}", "device=cpu", "name=mae", *own])
        assert isinstance(config, MaeTrainConfig)  # as asked for
        folder = run_folder(config)
        if folder.is_dir():
            reason = why_not_used_again(config)
            if reason is None:
                return str(folder)
            self.console.print(f"MAE      trained anew: {reason}", highlight=False, soft_wrap=True)
            shutil.rmtree(folder)
        train_mae(config, self._surroundings())
        return str(folder)

    def train(
        self, name: str, overrides: Sequence[str], loss: LossOfFeatures = drifting_loss
    ) -> tuple[Path, dict[str, Any]]:
        """Train one generator anew and return its folder and manifest."""
        own = [f"output={self.given.runs}", "device=cpu", f"name={name}", *overrides, *self.given.overrides]
        config = configuration("train", own)
        assert isinstance(config, GeneratorTrainConfig)  # as asked for
        shutil.rmtree(run_folder(config), ignore_errors=True)
        folder = train_generator(config, self._surroundings(), loss=loss)
        return folder, json.loads((folder / "manifest.json").read_text())

    def score(self, folder: Path, flow_steps: int = 1, picture: Path | None = None) -> dict[str, Any]:
        """Judge a generator, and draw ten samples of each class."""
        sampler, _ = load_sampler(folder, CPU, flow_steps=flow_steps)
        config = EvaluateConfig(ckpt=str(folder), num_samples=self.given.num_samples, splits=1, batch_size=250)
        scores = score(sampler, self.judged.judge, self.judged.reference, config, self.console)
        if picture is not None:
            write_png(draw_grid(sampler.draw(torch.arange(10).repeat(10), seed=0), 10), picture)
        return {**scores, "evaluations_per_image": sampler.num_evaluations}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a result with the facts of this run."""
        path = self.given.results / f"{name}.json"
        write_json(path, {**self._facts, "held_out_real_images": self.judged.held_out, **content})
        self.console.print(f"written  {path}", highlight=False, soft_wrap=True)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            script=self._script,
            overrides=self._arguments,
            say=lambda text: self.console.print(text, highlight=False, soft_wrap=True),
            make_display=lambda steps: TrainingDisplay(steps, self.console),
            quiet_display=lambda steps: TrainingDisplay(steps, Console(quiet=True)),
            plot_curves=plot_curves,
        )


def why_not_used_again(config: MaeTrainConfig) -> str | None:
    """Say why the masked autoencoder in the folder of a configuration is not the one that this would train.

    Returns:
        None if it is: finished, with the same settings and as many steps, on the same data.
    """
    folder = run_folder(config)
    try:
        steps = json.loads((folder / "manifest.json").read_text())["training"]["steps"]
        check_settings(folder, course_of(config, open_samples(config.dataset, config.seed).facts), _NOT_USED)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder} holds no finished training."
    except UserError as error:
        return str(error)
    wanted = config.trainer.num_steps
    return None if steps == wanted else f"The run in {folder} has {steps} steps instead of {wanted}."


def judge_digits(console: Console) -> Judged:
    """Train the classifier of the digits and judge the real ones."""
    train, held_out = (open_samples(DataConfig(split=split), 0) for split in ("train", "val"))
    images, class_ids = load_all(train)
    classifier = train_classifier(images, class_ids, train.num_classes)
    judge = ClassifierJudge(classifier, "digits", CPU, train.class_names)
    real = judge_all(judge, [images], len(images), "real", console)
    reference = Reference(moments_of(real.features), real.features, "digits, train")
    images, class_ids = load_all(held_out)
    others = judge_all(judge, [images], len(images), "held-out", console)
    assert others.logits is not None  # a classifier gives them
    scores = {
        f"Frechet distance in {judge.name} features": frechet_distance(moments_of(others.features), reference.moments),
        "accuracy": float((others.logits.argmax(dim=1) == class_ids).double().mean()),
    }
    return Judged(judge, reference, scores)
