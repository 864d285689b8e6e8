"""The evaluation beyond its formulas: devices, references, and what a network can say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from image_gen import evaluation
from image_gen.baselines.classifier import ImageClassifier
from image_gen.evaluation import EvaluateConfig, make_judge, make_reference
from image_gen.metrics.judges import Judgement
from image_gen.training.config import DataConfig

META = torch.device("meta")  # holds no numbers, but refuses what lies on another device
QUIET = Console(quiet=True)


class FakeJudge:
    """Judges by the mean of each channel, and notes what it was given."""

    name = "a fake"
    is_inception = False
    space = "pixels"
    knows_classes = False

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> Judgement:
        self.seen.append(images)
        means = torch.zeros(len(images), 2) if images.is_meta else images.mean(dim=(2, 3))
        return Judgement(means, torch.zeros(len(images), 4))


def test_the_classifier_judges_where_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(images: torch.Tensor, class_ids: torch.Tensor, num_classes: int) -> ImageClassifier:
        return ImageClassifier(images.shape[1], num_classes)

    monkeypatch.setattr(evaluation, "train_classifier", untrained)
    judged = make_judge("classifier", None, DataConfig(), META)(torch.zeros(3, 1, 8, 8, device=META))
    assert judged.features.device == judged.logits.device == META


def test_images_of_a_file_are_judged_on_the_device(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((5, 8, 8, 3), dtype=np.uint8))
    config = EvaluateConfig(ckpt="x", reference=str(tmp_path / "images.npz"), batch_size=3)
    judge = FakeJudge()
    make_reference(config, judge, None, META, QUIET)
    assert [(len(images), images.device) for images in judge.seen] == [(3, META), (2, META)]
