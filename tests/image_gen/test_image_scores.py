"""What the settings of an evaluation mean for what is drawn, judged and scored."""

import pytest
import torch
from rich.console import Console

from image_gen import evaluation
from image_gen.classes import Classes
from image_gen.evaluation import EvaluateConfig, random_rows, score
from image_gen.metrics.judges import Judgement
from image_gen.metrics.statistics import moments_of
from image_gen.models import build_generator
from image_gen.reference import Reference
from image_gen.sampling import Sampler
from image_gen.tokenizers.pixels import Pixels

QUIET = Console(quiet=True)


class MeanJudge:
    """Judges by the mean of grey images, and notes what it was given."""

    name = "the mean"
    is_inception = False
    space = "pixels"
    channels = None
    classes: Classes | None = None

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> Judgement:
        self.seen.append(images)
        return Judgement(images.mean(dim=(2, 3)), torch.zeros(len(images), 4))


def tiny_sampler() -> Sampler:
    sizes = {"hidden_size": 16, "cond_dim": 16, "depth": 1, "num_heads": 2, "n_cls_tokens": 1, "noise_coords": 2}
    generator = build_generator("digits_tiny", **sizes)
    for weight in generator.parameters():  # the last layer starts at zero: all images would be alike
        torch.nn.init.normal_(weight, std=0.1)
    return Sampler(generator, Pixels(1))


def test_the_settings_of_an_evaluation_reach_what_is_drawn_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, sampler, real = MeanJudge(), tiny_sampler(), torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    settings = {"num_samples": 30, "splits": 2, "num_nearest": 4, "num_manifold": 20, "seed": 5, "batch_size": 8}
    seen: dict[str, tuple[object, ...]] = {}

    def inception_score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
        seen["splits"] = (len(logits), splits)
        return 1.0, 0.0

    def precision_recall(generated: torch.Tensor, chosen: torch.Tensor, num_nearest: int) -> tuple[float, float]:
        assert torch.equal(chosen, random_rows(real, 20, seed=5))
        seen["nearest"] = (len(generated), num_nearest)
        return 0.5, 0.5

    monkeypatch.setattr(evaluation, "inception_score", inception_score)
    monkeypatch.setattr(evaluation, "precision_recall", precision_recall)
    config = EvaluateConfig(ckpt="x", **settings)  # type: ignore[arg-type]
    scores = score(sampler, judge, Reference(moments_of(real), real, "random"), config, QUIET)
    assert seen == {"splits": (30, 2), "nearest": (30, 4)} and scores["num_samples"] == 30
    class_ids = torch.arange(30) % sampler.generator.config.num_classes
    assert [len(images) for images in judge.seen] == [8, 8, 8, 6]
    torch.testing.assert_close(torch.cat(judge.seen), sampler.draw(class_ids, 5), rtol=1e-4, atol=1e-5)
