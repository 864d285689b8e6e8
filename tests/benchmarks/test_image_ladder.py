import argparse
import json
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import image_speed
from benchmarks.image_ladder import common, digits, orderings
from benchmarks.image_ladder.plain_loss import PlainDriftLoss, plain_loss_of_features
from drift_policy.drift import drift_loss
from image_gen.artifacts import load_mae
from image_gen.baselines.classifier import train_classifier
from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_loss import target_features
from image_gen.training.config import DriftConfig
from image_gen.training.drift_objective import drifting_loss
from tests.helpers.image_configs import TINY

SMALL = [text for text in TINY if text != "device=cpu"]


class Halves(FeatureExtractor):
    """Two positions an image, and another feature of their shape."""

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        halves = x.flatten(1).unflatten(1, (2, -1))
        return {"halves": halves, "cubes": halves**3}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_plain_loss_is_the_released_one() -> None:
    gen, pos, neg = normal(3, 4, 5, seed=0), normal(3, 6, 5, seed=1), normal(3, 2, 5, seed=2)
    weight = torch.rand(3, 2, generator=torch.Generator().manual_seed(3))
    one, two = (gen.clone().requires_grad_() for _ in range(2))
    plain, _ = PlainDriftLoss()(one, pos, neg, weight_neg=weight, temperatures=(0.02, 0.2))
    loss, _ = drift_loss(two, pos, neg, weight_neg=weight, temperatures=(0.02, 0.2))
    plain.mean().backward()
    loss.mean().backward()
    torch.testing.assert_close(plain.detach(), loss.detach(), rtol=1e-4, atol=0)
    assert one.grad is not None and two.grad is not None
    assert torch.allclose(one.grad, two.grad, rtol=1e-3, atol=1e-5)


def test_over_features_it_is_the_trainings_and_balance_matters() -> None:
    gen, pos, neg = normal(2, 4, 1, 2, 2, seed=0), normal(2, 5, 1, 2, 2, seed=1), normal(2, 3, 1, 2, 2, seed=2)
    targets = target_features(Halves().features, pos, neg)
    arguments = (Halves(), gen.requires_grad_(), targets, torch.tensor([1.0, 3.0]), DriftConfig(), True)
    expected = drifting_loss(*arguments)
    plain = plain_loss_of_features()(*arguments)
    assert plain.terms.keys() == expected.terms.keys()
    for name, info in expected.infos.items():
        torch.testing.assert_close(plain.infos[name]["scale"], info["scale"])
        torch.testing.assert_close(plain.infos[name]["force_sq"], info["force_sq"], rtol=1e-3, atol=0)
    assert float(plain.total.detach()) == pytest.approx(float(expected.total.detach()), rel=1e-4)
    (balanced,) = torch.autograd.grad(plain.total, gen)
    (broken,) = torch.autograd.grad(plain_loss_of_features(2.0, 1.0)(*arguments).total, gen)
    assert not torch.allclose(balanced, broken, rtol=0.1)


def test_the_ladder_leaves_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "train_classifier", partial(train_classifier, num_steps=200))
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--num-samples", "20"]
    digits.main([*places, *SMALL])
    methods = json.loads((tmp_path / "digits_seed0.json").read_text())["methods"]
    assert list(methods) == ["drift", "flow, 1 step(s)", "flow, 50 step(s)"]
    for method in methods.values():
        assert method["scores"]["Frechet distance in a small classifier of digits features"] > 0
    assert (tmp_path / "digits_flow_50_seed0.png").stat().st_size > 500
    own = [text for text in SMALL if not text.startswith("trainer.num_steps")]
    orderings.main(["--study", "features", "--steps", "2", *places, *own])
    result = json.loads((tmp_path / "ordering_features_2_steps_seed0.json").read_text())
    assert [row["training"]["steps"] for row in result["settings"]] == [2, 2, 2]
    assert [row["setting"] for row in result["settings"]] == ["encoder and pixels", "encoder", "raw pixels"]
    assert result["held_out_real_images"]["accuracy"] > 0.7


def test_the_common_autoencoder_is_of_todays_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "judge_digits", lambda console: None)
    parser = argparse.ArgumentParser()
    common.add_arguments(parser)

    def trained(*overrides: str) -> tuple[str, float, str]:
        console = Console(record=True, file=StringIO(), width=1000)
        given = parser.parse_args(["--runs", str(tmp_path), *SMALL, *overrides])
        folder = common.Study(given, "-m x", [], console).common_mae()
        return folder, (Path(folder) / "manifest.json").stat().st_mtime_ns, console.export_text()

    folder, first, said = trained()
    assert "anew" not in said
    assert load_mae(folder).config.base_channels == 4  # ++feature.mae_training.model.base_channels=4
    assert trained()[:2] == (folder, first)
    _, second, said = trained("feature.mae_training.trainer.learning_rate=0.01")
    assert second > first and "was started with other values of mae.trainer.learning_rate" in said
    (Path(folder) / "manifest.json").unlink()
    _, third, said = trained("feature.mae_training.trainer.learning_rate=0.01")
    assert third > second and "holds no finished training" in said
    free = ["feature.mae_training.classification_steps=0", "feature.mae_training.trainer.num_steps=2"]
    trained(*free)
    assert "has 2 steps instead of 1" in trained(*free, "feature.mae_training.trainer.num_steps=1")[2]


def test_speed_stands_beside_a_plain_reference(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    small = ["--labels", "2", "--samples", "2", "--seconds", "0.01"]
    image_speed.main(["--sizes", "digits_tiny", *small, "--output", str(output)])
    content = json.loads(output.read_text())
    assert (content["device"], content["compile"], content["checkpointing"]) == ("cpu", False, False)
    size = content["sizes"]["digits_tiny"]
    assert size["sampling"]["images_per_s"] > 0
    assert size["sampling"]["images_per_s_plain_attention"] > 0
    assert 0 < size["training"]["drift_loss_share"] < 3
