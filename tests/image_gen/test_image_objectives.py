"""What the two ways to train a generator compare with what: classes, real samples, scales and times."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drift_policy.drift import drift_loss
from drift_policy.training.parallel import Processes
from image_gen.baselines.flow import TIME_SCALE, FlowObjective, integrate_flow
from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_loss import INPUT_FEATURE, FeatureLoss, feature_drift_loss, target_features
from image_gen.feature_maps import Features
from image_gen.memory_bank import MemoryBank
from image_gen.training.config import BankConfig, DriftConfig, FeatureConfig
from image_gen.training.drift_objective import DriftObjective, InputFeatures, drifting_loss
from tests.helpers.image_models import small_generator

SIZE, NUM_CLASSES, BATCH = 8, 5, 6
ALONE = Processes(torch.device("cpu"))
NETWORK = small_generator(in_channels=1, out_channels=1, num_classes=NUM_CLASSES)  # for its sizes and styles


class NumberedClasses:
    """A stream whose images hold the number of their class, and the steps that it was asked for."""

    batch_size = BATCH

    def __init__(self) -> None:
        self.steps: list[int] = []

    def all(self, step: int) -> tuple[Tensor, Tensor]:
        self.steps.append(step)
        class_ids = (2 * torch.arange(BATCH) + step) % NUM_CLASSES
        return images_of(class_ids), class_ids


def images_of(class_ids: Tensor) -> Tensor:
    return class_ids.float().reshape(-1, 1, 1, 1).expand(-1, 1, SIZE, SIZE)


def exact_field(data: Tensor) -> Any:
    """The velocity that leads from any place to `data` at time 1."""

    def velocity(x: Tensor, class_ids: Tensor | None, time: Any, styles: Tensor | None) -> Tensor:
        return (data - x) / (1 - torch.as_tensor(time).reshape(-1, 1, 1, 1) / TIME_SCALE)

    return velocity


def test_the_loss_of_flow_matching_is_zero_for_the_exact_velocity() -> None:
    stream: Any = NumberedClasses()
    objective = FlowObjective(NETWORK, ALONE, stream=stream, seed=0)
    step, rows = objective.begin(3), slice(1, 5)
    assert torch.equal(step.data, images_of(step.class_ids)) and len(step.time.unique()) == BATCH
    loss, metrics = objective.loss(exact_field(step.data[rows]), step, rows)
    assert float(loss) == float(metrics["velocity_mse"]) == pytest.approx(0, abs=1e-8)
    assert float(objective.loss(exact_field(step.data[rows] + 0.1), step, rows)[0]) > 0.01


def test_a_flow_step_shows_the_network_classes_and_styles_of_its_rows() -> None:
    stream: Any = NumberedClasses()
    objective = FlowObjective(NETWORK, ALONE, stream=stream, seed=0)
    step, rows = objective.begin(3), slice(1, 5)
    seen: list[tuple[Tensor, ...]] = []

    def record(*given: Tensor) -> Tensor:
        seen.append(given)
        return torch.zeros_like(given[0])

    objective.loss(record, step, rows)  # type: ignore[arg-type]  # called like a module
    ((_, class_ids, time, styles),) = seen
    assert torch.equal(class_ids, stream.all(3)[1][rows]) and torch.equal(styles, step.styles[rows])
    assert torch.equal(time, TIME_SCALE * step.time[rows]) and len(step.styles.unique(dim=0)) > 1


def test_the_exact_velocity_leads_from_noise_to_the_data() -> None:
    data, noise = torch.randn(2, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    nobody: Any = None
    torch.testing.assert_close(integrate_flow(exact_field(data), noise, nobody, nobody, 4), data)


def test_samples_of_a_label_meet_real_samples_and_the_guidance_scale_of_that_label() -> None:
    config = DriftConfig(
        labels_per_step=BATCH,
        samples_per_label=2,
        positives_per_label=3,
        unconditional_per_label=40,
        bank=BankConfig(push_per_step=BATCH, fill_steps=4),
    )
    seen: list[tuple[Tensor, Any, Tensor | None, bool]] = []
    scales: list[Tensor] = []

    class ClassIds(nn.Module):
        """Draws the number of the class."""

        def forward(self, noise: Tensor, class_ids: Tensor, cfg_scale: Tensor, styles: Tensor) -> Tensor:
            scales.append(cfg_scale)
            return images_of(class_ids)

    def record(
        features: Any, gen: Tensor, targets: Any, cfg_scale: Tensor | None, config: Any, compare_input: bool
    ) -> FeatureLoss:
        seen.append((gen, targets, cfg_scale, compare_input))
        return FeatureLoss(gen.sum(), {}, {"one": {"force_sq": {0.1: torch.zeros(())}}})  # type: ignore[dict-item]  # its scale is not asked for

    stream: Any = NumberedClasses()
    objective = DriftObjective(
        NETWORK,
        ALONE,
        features=InputFeatures(),
        bank=MemoryBank(NUM_CLASSES, (1, SIZE, SIZE), class_capacity=4, unconditional_capacity=20),
        stream=stream,
        config=config,
        feature_config=FeatureConfig(encoder="none"),
        seed=0,
        loss=record,
    )
    objective.begin_training(0, has_state=False)
    step, rows = objective.begin(0), slice(1, 5)
    objective.loss(ClassIds(), step, rows)

    ((gen, targets, cfg_scale, compare_input),) = seen
    labels = step.class_ids[rows]
    assert torch.equal(labels, stream.all(4)[1][rows]) and compare_input
    for images, number in ((gen, 2), (targets.pos[INPUT_FEATURE], 3)):  # [labels, number, ...]
        assert images.shape[:2] == (4, number)
        assert torch.equal(images.flatten(2), labels.reshape(4, 1, 1).expand(-1, number, SIZE * SIZE).float())
    # Negatives of any class, for every label.
    assert all(set(row.flatten().tolist()) == set(range(NUM_CLASSES)) for row in targets.neg[INPUT_FEATURE])
    assert cfg_scale is not None and torch.equal(cfg_scale, step.cfg_scale[rows])
    assert len(step.cfg_scale.unique()) == BATCH and float(step.cfg_scale.min()) > 1
    assert torch.equal(scales[0], cfg_scale.repeat_interleave(2))


class Halves(FeatureExtractor):
    """The upper and the lower half, and how many images came at once."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def features(self, x: Tensor) -> Features:
        self.counts.append(len(x))
        return {"halves": x.reshape(len(x), 2, -1)}


class Noise(nn.Module):
    """Gives its noise back, with styles and guidance scale in one corner."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, noise: Tensor, class_ids: Tensor, cfg_scale: Tensor, styles: Tensor) -> Tensor:
        noise = noise.clone()
        noise[:, 0, 0, 0], noise[:, 0, 0, 1] = styles.float().mean(dim=1), cfg_scale
        return self.weight * noise


def drift_objective(loss: Any, features: FeatureExtractor, **feature_settings: Any) -> DriftObjective:
    config = DriftConfig(
        labels_per_step=BATCH,
        samples_per_label=2,
        positives_per_label=3,
        unconditional_per_label=4,
        bank=BankConfig(push_per_step=BATCH, fill_steps=4),
    )
    stream: Any = NumberedClasses()
    bank = MemoryBank(NUM_CLASSES, (1, SIZE, SIZE), class_capacity=40, unconditional_capacity=200)
    feature_config = FeatureConfig(encoder="none", **feature_settings)
    settings: dict[str, Any] = {"stream": stream, "bank": bank, "config": config, "feature_config": feature_config}
    return DriftObjective(NETWORK, ALONE, features=features, seed=0, loss=loss, **settings)


def test_the_bank_is_filled_with_the_samples_before_the_step_and_gets_each_once() -> None:
    objective = drift_objective(None, InputFeatures())
    stream: Any = objective._stream
    objective.begin_training(7, has_state=True)
    assert not stream.steps, "the queues were restored"
    objective.begin_training(7, has_state=False)
    objective.begin(7)
    objective.begin(8)
    assert stream.steps == [7, 8, 9, 10, 11, 12]


def test_parts_of_a_step_are_rows_of_the_whole() -> None:
    seen: list[tuple[Tensor, ...]] = []

    def record(_: Any, gen: Tensor, targets: Any, cfg_scale: Tensor, *others: Any) -> FeatureLoss:
        seen.append((gen, targets.pos["halves"], targets.neg["halves"], cfg_scale))
        return FeatureLoss(gen.sum(), {}, {"one": {"force_sq": {0.1: torch.zeros(())}}})  # type: ignore[dict-item]  # its scale is not asked for

    features = Halves()
    objective = drift_objective(record, features, chunk_size=5)
    objective.begin_training(0, has_state=False)
    step = objective.begin(0)
    for rows in (slice(0, BATCH), slice(0, 2), slice(2, BATCH)):
        objective.loss(Noise(), step, rows)
    assert max(features.counts) == 5
    for whole, first, second in zip(*seen, strict=True):
        assert torch.equal(torch.cat([first, second]), whole)


def test_the_metrics_are_spreads_within_a_label_and_means_of_forces() -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def record(_: Any, gen: Tensor, targets: Any, *others: Any) -> FeatureLoss:
        kept.append((gen, targets.pos[INPUT_FEATURE]))
        infos: Any = {name: {"force_sq": {0.1: torch.tensor(force)}} for name, force in (("a", 1.0), ("b", 3.0))}
        return FeatureLoss(gen.sum(), {}, infos)

    objective = drift_objective(record, InputFeatures())
    objective.begin_training(0, has_state=False)
    step = objective.begin(0)
    step.positives.queues.samples.normal_(generator=torch.Generator().manual_seed(0))
    loss, metrics = objective.loss(Noise(), step, slice(0, BATCH))
    ((gen, pos),) = kept
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    assert set(metrics) == {"force_0.1", "spread", "spread_real"} and float(metrics["force_0.1"]) == 2.0
    for name, samples in (("spread", gen), ("spread_real", pos)):
        torch.testing.assert_close(metrics[name], samples.detach().flatten(2).std(dim=1, correction=0).mean())


@pytest.mark.parametrize("compare_input", [False, True])
def test_the_settings_of_a_training_reach_the_kernel(compare_input: bool) -> None:
    called: list[dict[str, Any]] = []

    def kernel_loss(gen: Tensor, pos: Tensor, neg: Tensor | None = None, **options: Any) -> Any:
        called.append(options | {"shape": gen.shape})
        return drift_loss(gen, pos, neg, **options)

    features, config = Halves(), DriftConfig(temperatures=[0.3, 0.7], affinity_floor=0.25)
    gen, pos = torch.randn(2, 2, 3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    targets = target_features(features.features, pos)
    loss = drifting_loss(features, gen.requires_grad_(), targets, None, config, compare_input, kernel_loss)
    assert list(loss.terms) == ["halves", INPUT_FEATURE][: 1 + compare_input]
    assert [options["shape"] for options in called] == [(4, 3, SIZE * SIZE // 2), (2, 3, SIZE * SIZE)][: len(called)]
    assert all(options["temperatures"] == [0.3, 0.7] and options["affinity_floor"] == 0.25 for options in called)
    assert loss.total.requires_grad and not any(term.requires_grad for term in loss.terms.values())


def test_every_position_of_a_class_has_its_guidance_and_its_own_negatives() -> None:
    called: list[tuple[Tensor, Tensor, Tensor]] = []

    def kernel_loss(gen: Tensor, pos: Tensor, neg: Tensor | None = None, **options: Any) -> Any:
        assert neg is not None
        called.append((gen, neg, options["weight_neg"]))
        return drift_loss(gen, pos, neg, **options)

    numbers = torch.arange(3.0).reshape(3, 1, 1, 1, 1)  # of the class, in all its images
    gen, pos, neg = (numbers.expand(-1, count, 1, SIZE, SIZE).bfloat16() for count in (4, 2, 5))
    targets = target_features(Halves().features, pos, neg)
    scales = torch.tensor([1.0, 2.0, 3.0])
    feature_drift_loss(Halves().features, gen, targets, scales, kernel_loss=kernel_loss)
    for samples, negatives, weights in called:
        assert samples.dtype == negatives.dtype == torch.float32
        assert torch.equal(samples[:, 0, 0], negatives[:, 0, 0])
        torch.testing.assert_close(weights, (samples[:, :1, 0] * 3 / 5).expand(-1, 5))  # (alpha - 1) (G - 1) / N
