"""The drifting model's training step: labels, guidance scales, real samples from the bank, the loss over features."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from drift_policy.drift import DriftInfo, drift_loss
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import step_generator
from drift_policy.training.stepped_training import Metrics
from image_gen.artifacts.digest import weights_digest
from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_loss import (
    INPUT_FEATURE,
    FeatureLoss,
    KernelLoss,
    TargetFeatures,
    compiled_drift_loss,
    feature_drift_loss,
    target_features,
)
from image_gen.feature_maps import Features
from image_gen.memory_bank import Draws, MemoryBank
from image_gen.models import DiT
from image_gen.training.config import DriftConfig, FeatureConfig
from image_gen.training.objective import Objective
from image_gen.training.samples import SampleStream
from image_gen.training.schedule import row_generator

_BANK = "bank."


class InputFeatures(FeatureExtractor):
    """No encoder: the images or latents themselves are the only feature."""

    def features(self, x: Tensor) -> Features:
        """Return nothing; the loss adds the input."""
        return {}


class LossOfFeatures(Protocol):
    """The signature of `feature_drift_loss`, which studies of the loss replace."""

    def __call__(
        self,
        features: FeatureExtractor,
        gen: Tensor,
        targets: TargetFeatures,
        cfg_scale: Tensor | None,
        config: DriftConfig,
        compare_input: bool,
    ) -> FeatureLoss:
        """Return the loss over features."""


class DriftStep(NamedTuple):
    """What a step needs, over all processes; real samples are read from the queues when their labels' turn comes."""

    number: int
    class_ids: Tensor  # [N_c]
    cfg_scale: Tensor  # [N_c]
    positives: Draws  # N_pos for each of N_c labels
    unconditional: Draws | None  # N_unc for each of N_c labels


def drifting_loss(
    features: FeatureExtractor,
    gen: Tensor,
    targets: TargetFeatures,
    cfg_scale: Tensor | None,
    config: DriftConfig,
    compare_input: bool,
    kernel_loss: KernelLoss = drift_loss,
) -> FeatureLoss:
    """Return the drifting loss with the settings of a training; see `feature_drift_loss`."""
    return feature_drift_loss(
        features.features,
        gen,
        targets,
        cfg_scale,
        temperatures=config.temperatures,
        affinity_floor=config.affinity_floor,
        select=None if compare_input else lambda name: name != INPUT_FEATURE,
        kernel_loss=kernel_loss,
    )


def compiled_drifting_loss() -> LossOfFeatures:
    """Return `drifting_loss` on the compiled drift loss."""
    return partial(drifting_loss, kernel_loss=compiled_drift_loss())


class DriftObjective(Objective[DiT, DriftStep]):
    """Trains a generator by drifting.

    Rows are labels. Every process holds the same bank, so that a step is the same whatever their number.

    Args:
        network: the generator.
        processes: who trains together.
        features: frozen, on the device.
        bank: empty, on its device.
        stream: of real samples, `config.bank.push_per_step` a step.
        config: see `DriftConfig`.
        feature_config: which features count.
        seed: of all random numbers.
        loss: over features.
    """

    def __init__(
        self,
        network: DiT,
        processes: Processes,
        *,
        features: FeatureExtractor,
        bank: MemoryBank,
        stream: SampleStream,
        config: DriftConfig,
        feature_config: FeatureConfig,
        seed: int,
        loss: LossOfFeatures = drifting_loss,
    ) -> None:
        super().__init__(network, processes)
        self.features, self.bank = features, bank
        self._stream, self._config, self._seed = stream, config, seed
        self._feature_config, self._loss_of_features = feature_config, loss
        self.samples_per_step = config.labels_per_step * config.samples_per_label

    @property
    def rows_per_step(self) -> int:
        """Labels of a step."""
        return self._config.labels_per_step

    @property
    def saves_bank(self) -> bool:
        """Whether the bank is part of a checkpoint."""
        return self.bank.nbytes <= self._config.bank.save_limit_mb * 1e6

    def module(self) -> nn.Module:
        """Return the generator."""
        return self.network

    def begin_training(self, step: int, has_state: bool) -> None:
        """Fill the bank, unless it was restored: with the samples that came before, as far back as `fill_steps`."""
        if has_state:
            return
        fill = self._config.bank.fill_steps
        for number in range(step, step + fill):  # the pushes before this step; see `begin`
            self.bank.push(*self._stream.all(number))

    def begin(self, step: int) -> DriftStep:
        """Push the newest real samples, take their classes as labels, and draw from the queues for all of them."""
        config = self._config
        samples, class_ids = self._stream.all(step + config.bank.fill_steps)
        self.bank.push(samples, class_ids)
        draws = step_generator(step, self._seed)
        labels = class_ids[: config.labels_per_step]
        cfg_scale = config.guidance.draw(len(labels), draws).to(labels.device)
        positives = self.bank.positives(labels, config.positives_per_label, draws)
        unconditional = None
        if config.unconditional_per_label:
            unconditional = self.bank.unconditional(len(labels), config.unconditional_per_label, draws)
        return DriftStep(step, labels, cfg_scale, positives, unconditional)

    def loss(self, module: nn.Module, step: DriftStep, rows: slice) -> tuple[Tensor, Metrics]:
        """Return the sum over features of the drifting loss of some labels."""
        device = step.class_ids.device
        positives = step.positives.samples(rows).to(device)
        targets = target_features(
            self.features.features,
            positives,
            None if step.unconditional is None else step.unconditional.samples(rows).to(device),
            chunk_size=self._feature_config.chunk_size,
        )
        gen = self.generate(module, step, rows)
        result = self._loss_of_features(
            self.features, gen, targets, step.cfg_scale[rows], self._config, self._feature_config.compare_input
        )
        return result.total, _metrics(result, gen.detach(), positives)

    def generate(self, module: nn.Module, step: DriftStep, rows: slice) -> Tensor:
        """Draw the generated samples of some labels, [labels, N_gen, C, H, W]."""
        class_ids, cfg_scale = step.class_ids[rows], step.cfg_scale[rows]
        count, device = self._config.samples_per_label, class_ids.device
        size, channels = self.network.config.input_size, self.network.config.in_channels
        noise, styles = [], []
        for row in range(*rows.indices(len(step.class_ids))):
            generator = row_generator(step.number, row, self._seed, device)
            noise.append(torch.randn(count, channels, size, size, generator=generator, device=device))
            styles.append(self.network.draw_noise_labels(count, device, generator))
        images = module(
            torch.cat(noise), class_ids.repeat_interleave(count), cfg_scale.repeat_interleave(count), torch.cat(styles)
        )
        return images.float().unflatten(0, (len(class_ids), count))

    def state(self) -> dict[str, Tensor]:
        """Return the queues, if they are small enough to be saved."""
        if not self.saves_bank:
            return {}
        return {f"{_BANK}{name}": tensor.cpu().contiguous() for name, tensor in self.bank.state_dict().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> bool:
        """Take the queues back; whether there were any."""
        found = {name.removeprefix(_BANK): tensor for name, tensor in tensors.items() if name.startswith(_BANK)}
        if found:
            self.bank.load_state_dict(found)
        return bool(found)

    def encoders_digest(self) -> str | None:
        """Return a digest of the weights of the feature extractor, if it has any."""
        return weights_digest(self.features) if self.features.state_dict() else None

    def close(self) -> None:
        """End the worker processes of the stream."""
        self._stream.close()


@torch.no_grad()
def _metrics(result: FeatureLoss, gen: Tensor, positives: Tensor) -> Metrics:
    """Return what measures progress: forces before their normalisation, distances, and spreads to compare."""
    infos: list[DriftInfo] = list(result.infos.values())
    metrics = {
        f"force_{temperature:g}": torch.stack([info["force_sq"][temperature] for info in infos]).mean()
        for temperature in infos[0]["force_sq"]
    }
    if INPUT_FEATURE in result.infos:
        metrics["scale"] = result.infos[INPUT_FEATURE]["scale"]
    # Of the pixels or latents, between samples of one label: real samples show what it shall become.
    metrics["spread"] = gen.std(dim=1, correction=0).mean()
    metrics["spread_real"] = positives.std(dim=1, correction=0).mean()
    return metrics
