"""Steps that are counted on the meta device: FLOPs, traffic, and memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.image_ladder import cost, memory, traffic
from drift_policy.drift import drift_loss
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_maps import FeatureSettings
from image_gen.models import build_generator, build_mae
from image_gen.training.config import DriftConfig


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
        assert moved(lambda values: torch.add(values, 1, out=values)) == (1, 2 * numbers)
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
    config = DriftConfig(labels_per_step=labels, samples_per_label=4, positives_per_label=5, unconditional_per_label=2)
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


def test_peak_memory_is_of_what_exists_at_once() -> None:
    with cost.on_meta():
        weight, kept = torch.empty(100), []
        with memory.PeakMemory([weight]) as found:
            kept.append(weight.view(10, 10) + 1)  # 400 bytes; the view has those of the weight
            for _ in range(3):
                del_soon = torch.empty(50)  # each of 200 bytes takes the place of the one before, which goes after it
            assert (found.now, found.peak) == (600, 800)
            del del_soon
            kept[0].add_(1)
            assert (found.now, found.peak) == (400, 800)


def test_memory_grows_with_the_labels_and_shrinks_with_the_precision() -> None:
    with cost.on_meta():
        step = tiny_step(8)
        one, three = (memory.peak_of_step(step, labels) for labels in (1, 3))
        # Beside what labels make there are the gradients of the generator.
        gradients = sum(weight.nbytes for weight in step.generator.parameters())
        assert gradients < one < three < 3 * one
        step.generator.to(torch.bfloat16)
        step.features.to(torch.bfloat16)
        half = memory.peak_of_step(step, 3)
    assert 0.4 * three < half < three


def test_the_memory_of_a_run_is_counted_for_several_numbers_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "step_of", lambda name: tiny_step(32))
    output = tmp_path / "memory.json"
    memory.main(["--runs", "ablation", "--output", str(output)])
    content = json.loads(output.read_text())
    run = content["runs"]["ablation"]
    assert [(step["processes"], step["labels"]) for step in run["steps"]] == [(8, 4), (32, 1)]
    for step in run["steps"]:
        assert step["checkpointing"]["float32"] < step["kept"]["float32"]
    assert run["always"] > 1000 * (128 + 1) * 4 * 32 * 32  # the queues of a thousand classes
    assert all(peak > 0 for peak in content["peak_of_losses"].values())
