"""What the paper's runs cost: FLOPs of a training step and memory of the queues, counted without any computation.

    python -m benchmarks.image_ladder.cost

Networks lie on the meta device, where torch.utils.flop_counter counts matrix products and convolutions, two operations
for a multiplication with its addition; other operations, optimiser included, are not counted. Counts the steps of
`benchmarks.image_speed` too, which give the FLOP/s of a measured training. Leaves results/image_gen/cost.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.image_ladder.common import RESULTS, configuration
from benchmarks.image_speed import ENCODERS, drift_settings
from drift_policy.cli import command_line
from drift_policy.manifest import describe_run, write_json
from image_gen.encoders.base import CombinedFeatures, FeatureExtractor
from image_gen.encoders.convnext import ConvNextV2Features
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_loss import target_features
from image_gen.feature_maps import FeatureSettings
from image_gen.memory_bank import MemoryBank
from image_gen.models import GENERATOR_SIZES, MAE, DiT, build_generator, build_mae
from image_gen.tokenizers import Tokenizer
from image_gen.tokenizers.sd_vae import SdVae
from image_gen.training.config import DriftConfig, GeneratorTrainConfig, MaeTrainConfig
from image_gen.training.drift_objective import drifting_loss

SCRIPT = "-m benchmarks.image_ladder.cost"
GENERATORS = ("ablation", "latent_B", "latent_L", "pixel_B", "pixel_L")
AUTOENCODERS = ("latent_256", "latent_640", "pixel_256", "pixel_640")
MEASURED = ("latent_B", "latent_L", "pixel_B", "pixel_L")  # sizes of results/image_gen/speed_h100.json
_DATA = "dataset=imagenet256"
_IMAGE_SIDE = 256
_CLASSES = 1000
_PUBLISHED = "hf://mae_"


@contextmanager
def on_meta() -> Iterator[None]:
    """Put what is made inside on the meta device, which knows no autocast: types do not change the number of FLOPs."""
    with torch.device("meta"), mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        yield


def count(run: Callable[[], object]) -> int:
    """Return the FLOPs of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass
class Step:
    """One drifting training step; a step of N_c labels costs N_c times one of a single label."""

    generator: DiT
    features: FeatureExtractor
    config: DriftConfig

    def flops(self) -> dict[str, int]:
        """Return the FLOPs of its parts.

        Returns:
            generator: forward and backward, with the second forward of activation checkpointing; features_real and
            features_generated: encoders on real images, and on generated ones with the gradient to them; loss: of all
            features.
        """
        config, labels = self.config, self.config.labels_per_step
        real = self._real(config.positives_per_label), self._real(config.unconditional_per_label)
        targets = target_features(self.features.features, *real)
        gen = self._images(config.samples_per_label).requires_grad_()
        encoded = count(lambda: _backward(self.features.features(gen)))
        scale = torch.ones(1)
        compared = count(
            lambda: drifting_loss(
                self.features, gen.unsqueeze(0), targets, scale, config, compare_input=True
            ).total.backward()
        )
        parts = {
            "generator": count(lambda: self._generate(config.samples_per_label).sum().backward()),
            "features_real": count(lambda: target_features(self.features.features, *real)),
            "features_generated": encoded,
            "loss": compared - encoded,
        }
        return {name: labels * flops for name, flops in parts.items()}

    def flops_of_an_image(self) -> dict[str, int]:
        """Return the FLOPs of one forward pass of the generator and of the encoders."""
        with torch.no_grad():
            return {
                "generator": count(lambda: self._generate(1)),
                "features": count(lambda: self.features.features(self._images(1))),
            }

    def _generate(self, number: int) -> Tensor:
        classes = torch.zeros(number, dtype=torch.long)
        styles = self.generator.draw_noise_labels(number, "meta", None)
        return self.generator(self._images(number), classes, torch.ones(number), styles)

    def _images(self, number: int) -> Tensor:
        config = self.generator.config
        return torch.empty(number, config.in_channels, config.input_size, config.input_size)

    def _real(self, number: int) -> Tensor:
        return self._images(number).unsqueeze(0)


def _training(name: str) -> GeneratorTrainConfig:
    config = configuration("train", [_DATA, f"model={name}"])
    assert isinstance(config, GeneratorTrainConfig)  # as asked for
    return config


def step_of(name: str) -> Step:
    """Return a step of the paper's training of a generator, with random weights."""
    config = _training(name)
    assert config.feature.mae is not None  # as the recipes say
    generator = build_generator(config.model["name"], num_classes=_CLASSES)
    generator.activation_checkpointing = config.trainer.activation_checkpointing
    settings = FeatureSettings(every_k_block=config.feature.every_k_block)
    features: FeatureExtractor = MaeFeatures(build_mae(config.feature.mae.removeprefix(_PUBLISHED)), settings)
    if config.feature.convnext is not None:
        features = CombinedFeatures([features, _convnext()])
    return Step(generator.train(), features, config.drift)


def queues_of(name: str) -> MemoryBank:
    """Return the empty queues of the paper's training of a generator."""
    config = _training(name)
    sizes, bank = GENERATOR_SIZES[config.model["name"]], config.drift.bank
    shape = (sizes.in_channels, sizes.input_size, sizes.input_size)
    return MemoryBank(_CLASSES, shape, bank.class_capacity, bank.unconditional_capacity, bank.storage)


def generator_cost(name: str) -> dict[str, Any]:
    """Return the cost of the paper's training of a generator; latents are cached, so encoding them is no part of it."""
    config, step = _training(name), step_of(name)
    drift = config.drift
    return {
        "steps": config.trainer.num_steps,
        "generated_images_per_step": drift.labels_per_step * drift.samples_per_label,
        "real_images_per_step": drift.labels_per_step * (drift.positives_per_label + drift.unconditional_per_label),
        "queue_bytes": queues_of(name).nbytes,
        "flops_of_an_image": step.flops_of_an_image(),
        "flops_per_step": step.flops(),
    }


def autoencoder_cost(name: str) -> dict[str, Any]:
    """Return the cost of a masked autoencoder's training; random crops are encoded anew in every step."""
    config = configuration("train_mae", [_DATA, f"mae={name}"])
    assert isinstance(config, MaeTrainConfig)  # as asked for
    mae = build_mae(config.mae.model["name"])
    tokenizer = None if config.dataset.tokenizer == "pixels" else _sd_vae()
    pixels = torch.empty(1, 3, _IMAGE_SIDE, _IMAGE_SIDE)
    images = pixels if tokenizer is None else tokenizer.encode(pixels)
    batch = config.mae.batch_size
    return {
        "steps": config.trainer.num_steps,
        "real_images_per_step": batch,
        "flops_per_step": {
            "autoencoder": batch * count(lambda: _train_once(mae, images)),
            "tokenizer": 0 if tokenizer is None else batch * count(lambda: tokenizer.encode(pixels)),
        },
    }


def measured_step(size: str) -> dict[str, int]:
    """Return the FLOPs of the step that `benchmarks.image_speed` times of a size, with one label of 64 samples."""
    generator = build_generator(size, num_classes=_CLASSES)
    name, every_k_block = ENCODERS[size]
    mae = build_mae(name, in_channels=generator.config.in_channels)
    features = MaeFeatures(mae, FeatureSettings(every_k_block=every_k_block))
    return Step(generator.train(), features, drift_settings(labels=1, samples=64)).flops()


def _train_once(mae: MAE, images: Tensor) -> None:
    classes = torch.zeros(len(images), dtype=torch.long)
    mask = torch.empty(len(images), 1, *mae.fold(images).shape[2:])
    mae.losses(images, classes, mask, lambda_cls=0.1).total.sum().backward()


def _backward(features: dict[str, Tensor]) -> None:
    torch.stack([value.sum() for value in features.values()]).sum().backward()


def _convnext() -> ConvNextV2Features:
    """Return ConvNeXt-V2 of size B, facebook/convnextv2-base-22k-224, without its weights."""
    from transformers import ConvNextV2Config, ConvNextV2Model

    return ConvNextV2Features(
        ConvNextV2Model(ConvNextV2Config(hidden_sizes=[128, 256, 512, 1024], depths=[3, 3, 27, 3]))
    )


def _sd_vae() -> Tokenizer:
    """Return the Stable Diffusion autoencoder, stabilityai/sd-vae-ft-mse, without its weights."""
    from diffusers import AutoencoderKL

    down, up = (("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4)
    widths = (128, 256, 512, 512)
    return SdVae(AutoencoderKL(down_block_types=down, up_block_types=up, block_out_channels=widths, layers_per_block=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and write."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python " + SCRIPT, description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "cost.json")
    given = parser.parse_args(arguments)
    with command_line() as console:
        with on_meta():
            result = {
                **describe_run(SCRIPT, arguments),
                "generators": {name: generator_cost(name) for name in GENERATORS},
                "autoencoders": {name: autoencoder_cost(name) for name in AUTOENCODERS},
                "flops_of_measured_steps": {name: measured_step(name) for name in MEASURED},
            }
        write_json(given.output, result)
        console.print(f"written  {given.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
