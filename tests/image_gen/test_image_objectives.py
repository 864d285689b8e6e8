"""What the two ways to train a generator compare with what: classes, real samples, scales and times."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drift_policy.training.parallel import Processes
from image_gen.baselines.flow import TIME_SCALE, FlowObjective, integrate_flow
from image_gen.feature_loss import INPUT_FEATURE, FeatureLoss
from image_gen.memory_bank import MemoryBank
from image_gen.training.config import BankConfig, DriftConfig, FeatureConfig
from image_gen.training.drift_objective import DriftObjective, InputFeatures
from tests.helpers.image_models import small_generator

SIZE, NUM_CLASSES, BATCH = 8, 5, 6
ALONE = Processes(torch.device("cpu"))
NETWORK = small_generator(in_channels=1, out_channels=1, num_classes=NUM_CLASSES)  # for its sizes and styles


class NumberedClasses:
    """A stream whose images hold the number of their class."""

    batch_size = BATCH

    def all(self, step: int) -> tuple[Tensor, Tensor]:
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
