import argparse
import json
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import image_speed
from benchmarks.image_ladder import common, cost, digits, orderings, traffic
from benchmarks.image_ladder.plain_loss import PlainDriftLoss, plain_loss_of_features
from drift_policy.drift import drift_loss
from image_gen.artifacts import load_mae
from image_gen.baselines.classifier import train_classifier
from image_gen.encoders.base import FeatureExtractor
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_loss import target_features
from image_gen.feature_maps import FeatureSettings
from image_gen.models import build_generator, build_mae
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


def test_flops_of_a_step_are_those_of_its_passes() -> None:
    with cost.on_meta():
        assert cost.count(lambda: torch.empty(2, 3) @ torch.empty(3, 4)) == 2 * 2 * 3 * 4
        generator, features = build_generator("digits_tiny"), MaeFeatures(build_mae("digits_tiny"))
        config = DriftConfig(labels_per_step=3, samples_per_label=4, positives_per_label=5, unconditional_per_label=2)
        step = cost.Step(generator, features, config)
        image, parts = step.flops_of_an_image(), step.flops()
        generator.activation_checkpointing = True
        recomputed = step.flops()
    assert parts["features_real"] == 3 * 7 * image["features"]
    # The gradient goes to the images alone, not to frozen weights.
    assert parts["features_generated"] == pytest.approx(2 * 12 * image["features"], rel=0.01)
    assert parts["generator"] == pytest.approx(3 * 12 * image["generator"], rel=0.05)
    assert recomputed["generator"] == pytest.approx(4 * 12 * image["generator"], rel=0.05)
    assert parts["loss"] > 0


def test_traffic_is_what_operations_read_and_write() -> None:
    def moved(run: Callable[[torch.Tensor], object]) -> tuple[int, int]:
        values = torch.empty(2, 3)
        with traffic.CountTraffic() as counted:
            run(values)
        return counted.kernels, counted.bytes

    numbers = 4 * 2 * 3
    with cost.on_meta():
        assert moved(lambda values: values + 1) == (1, 2 * numbers)
        assert moved(lambda values: values.add_(1)) == (1, 2 * numbers)  # read, and written in place
        assert moved(lambda values: values.t().reshape(3, 2)[1:]) == (0, 0)
        assert moved(lambda values: values.new_ones(5)) == (1, 4 * 5)
        assert moved(lambda values: values * values[:, :1].expand(2, 3)) == (1, 2 * numbers + 4 * 2)


def test_matrices_are_what_does_not_grow_with_the_samples() -> None:
    def bytes_of(size: int, samples: int = 4) -> int:
        loss = traffic.MatrixBytes(drift_loss)
        with cost.on_meta():
            loss(torch.empty(3, samples, size), torch.empty(3, 5, size), temperatures=(0.1, 0.2))
        return loss.bytes

    assert bytes_of(7) == bytes_of(70)
    # Both softmaxes alone write a number for every temperature, sample and target.
    assert bytes_of(7, samples=40) - bytes_of(7, samples=20) > 2 * 4 * 3 * 2 * (40 * 45 - 20 * 25)


def tiny_step(labels: int) -> cost.Step:
    config = DriftConfig(
        labels_per_step=labels, samples_per_label=4, positives_per_label=5, unconditional_per_label=2
    )
    features = MaeFeatures(
        build_mae("digits_tiny"), FeatureSettings(every_k_block=0, patch_mean_size=[], patch_std_size=[])
    )
    return cost.Step(build_generator("digits_tiny"), features, config)


def test_traffic_of_a_run_is_counted_for_one_of_eight_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    for labels in (8, 24):
        monkeypatch.setattr(traffic, "step_of", lambda name, labels=labels: tiny_step(labels))
        traffic.main(["--runs", "ablation", "--output", str(tmp_path / "traffic.json")])
        counted.append(json.loads((tmp_path / "traffic.json").read_text())["runs"]["ablation"])
    one, three = counted
    assert (one["labels"], three["labels"]) == (1, 3)
    assert three["flops_of_networks"] == pytest.approx(3 * one["flops_of_networks"], rel=1e-6)
    for run in counted:
        ours, plain = run["losses"]["drift loss"], run["losses"]["plain loss"]
        for kind in ("kernels", "bytes", "bytes_of_matrices"):
            assert 0 < ours[kind] < plain[kind]
        assert ours["bytes_of_matrices"] < ours["bytes"]
    ours, tripled = one["losses"]["drift loss"], three["losses"]["drift loss"]
    assert tripled["bytes_of_matrices"] == pytest.approx(3 * ours["bytes_of_matrices"], rel=0.01)
    assert tripled["kernels"] == pytest.approx(ours["kernels"], rel=0.1)

    monkeypatch.setattr(traffic, "step_of", lambda name: tiny_step(12))
    with pytest.raises(ValueError, match="has 12 labels, which 8 processes cannot share"):
        traffic.traffic_of("ablation")
