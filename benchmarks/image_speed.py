"""Speed of image generation: images/s of sampling, steps/s of training, and the share of the drift loss in a step.

    python -m benchmarks.image_speed --sizes digits_tiny latent_tiny
    python -m benchmarks.image_speed --sizes latent_B --device cuda --precision bfloat16 --compile --output gpu.json

Random weights and data: speed does not depend on them. Every number stands beside a plain reference of the same run:
attention written out as softmax(q k^T) v, and the drift loss of `benchmarks.image_ladder.plain_loss`. With --compile
generator and drift loss are compiled in training, and the loss is timed without it too. Leaves
results/image_gen/speed.json, or --output; every speed*.json there is a part of the table in docs/image_gen.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.image_ladder.plain_loss import plain_loss_of_features
from benchmarks.timing import measure_in_turns
from drift_policy.cli import command_line
from drift_policy.device import choose_device
from drift_policy.manifest import describe_run, write_json
from drift_policy.training.parallel import Processes
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_loss import target_features
from image_gen.feature_maps import FeatureSettings
from image_gen.memory_bank import MemoryBank
from image_gen.models import DiT, build_generator, build_mae
from image_gen.training.checkpoint import CheckpointStore
from image_gen.training.config import BankConfig, DriftConfig, FeatureConfig, OptimizerConfig
from image_gen.training.drift_objective import DriftObjective, LossOfFeatures, compiled_drifting_loss, drifting_loss
from image_gen.training.loop import TrainingLoop
from image_gen.training.samples import RealSamples, SampleStream

SCRIPT = "-m benchmarks.image_speed"
DEFAULT_OUTPUT = Path(__file__).parents[1] / "results" / "image_gen" / "speed.json"
# Generator -> the masked autoencoder that it is trained with, and every_k_block of its features.
ENCODERS = {
    "digits_tiny": ("digits_tiny", 0),
    "latent_tiny": ("latent_tiny", 2),
    "latent_B": ("latent_640", 2),
    "latent_L": ("latent_640", 2),
    "pixel_B": ("pixel_640", 2),
    "pixel_L": ("pixel_640", 2),
}
_CLASSES = 10
_ROUNDS = 3  # turns of what is compared


class _RandomSamples:
    """Random images with random classes."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(count, *shape, generator=generator).clamp(-1, 1)
        self._class_ids = torch.randint(_CLASSES, (count,), generator=generator)

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes."""

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], int(self._class_ids[index])


class _NoDisplay:
    """Shows nothing."""

    def __enter__(self) -> _NoDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Print nothing."""


@dataclass
class Case:
    """What is measured of one size."""

    size: str
    device: torch.device
    precision: str
    labels: int  # N_c of a step
    samples: int  # N_gen
    seconds: float  # a measurement's length
    checkpointing: bool
    compile: bool  # generator and drift loss


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with its matrix of weights in memory, [B, heads, T, head_dim]."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def measure(case: Case) -> dict[str, Any]:
    """Return sampling and training speed of one size."""
    with torch.device(case.device):  # the largest take long to be drawn on a CPU
        generator = build_generator(case.size, num_classes=_CLASSES)
        name, every_k_block = ENCODERS[case.size]
        mae = build_mae(name, in_channels=generator.config.in_channels, num_classes=_CLASSES)
    features = MaeFeatures(mae, FeatureSettings(every_k_block=every_k_block))
    result: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in generator.parameters())}
    result["sampling"] = _sampling(case, generator)
    used = compiled_drifting_loss() if case.compile else drifting_loss
    losses: dict[str, LossOfFeatures] = {"drift_loss": used, "plain_loss": plain_loss_of_features()}
    steps = _step_seconds(case, generator, features, losses)
    if case.compile:
        losses["drift_loss_not_compiled"] = drifting_loss
    costs = _loss_costs(case, generator, features, losses)
    result["training"] = {
        "labels_per_step": case.labels,
        "samples_per_label": case.samples,
        "steps_per_s": 1 / steps["drift_loss"],
        "steps_per_s_plain_loss": 1 / steps["plain_loss"],
        **costs,
        "drift_loss_share": costs["drift_loss"]["seconds"] / steps["drift_loss"],
    }
    return result


def _sampling(case: Case, generator: DiT) -> dict[str, Any]:
    config, batch = generator.config, case.labels * case.samples
    noise = torch.randn(batch, config.in_channels, config.input_size, config.input_size, device=case.device)
    class_ids = torch.zeros(batch, dtype=torch.long, device=case.device)
    generator.eval()

    @torch.inference_mode()
    def draw() -> None:
        with _autocast(case):
            generator(noise, class_ids, 1.0)

    def draw_plainly() -> None:
        with mock.patch.object(functional, "scaled_dot_product_attention", plain_attention):
            draw()

    seconds = _medians({"fused": draw, "plain": draw_plainly}, case)
    return {
        "batch": batch,
        "images_per_s": batch / seconds["fused"],
        "images_per_s_plain_attention": batch / seconds["plain"],
    }


def _step_seconds(
    case: Case, generator: DiT, features: MaeFeatures, losses: dict[str, LossOfFeatures]
) -> dict[str, float]:
    """Return the time of a training step with each loss."""
    steps = {}
    for name, loss in losses.items():
        loop = _training(case, generator, features, loss)
        loop.objective.begin_training(0, has_state=False)
        steps[name] = partial(lambda loop, numbers: loop.update(next(numbers)), loop, iter(range(10**9)))
    return _medians(steps, case)


def _loss_costs(
    case: Case, generator: DiT, features: MaeFeatures, losses: dict[str, LossOfFeatures]
) -> dict[str, dict[str, Any]]:
    """Return time and memory of each loss alone: features are there, and the gradient ends at them."""
    objective = _training(case, generator, features, drifting_loss).objective
    assert isinstance(objective, DriftObjective)  # `_training` makes one
    objective.begin_training(0, has_state=False)
    step = objective.begin(0)
    kept: dict[str, Any] = {}

    class Fixed(MaeFeatures):
        """Gives the features of the first call again, as leaves of the gradient."""

        def features(self, x: Tensor) -> dict[str, Tensor]:
            key = str(len(x))
            if key not in kept:
                with torch.no_grad(), _autocast(case):
                    kept[key] = super().features(x)
            return {name: value.detach().requires_grad_() for name, value in kept[key].items()}

    fixed = Fixed(features.mae, features.settings)
    positives = step.positives.samples()
    gen = torch.randn(case.labels, case.samples, *positives.shape[2:], device=case.device, requires_grad=True)
    unconditional = None if step.unconditional is None else step.unconditional.samples()
    with _autocast(case):
        targets = target_features(features.features, positives, unconditional)
    config = objective._config

    def run(loss: LossOfFeatures) -> None:
        loss(fixed, gen, targets, step.cfg_scale, config, True).total.backward()

    runs = {name: partial(run, loss) for name, loss in losses.items()}
    seconds = _medians(runs, case)
    return {name: {"seconds": seconds[name], "memory_mb": _memory_mb(runs[name], case.device)} for name in runs}


def _memory_mb(run: Callable[[], object], device: torch.device) -> float | None:
    """Return what a call needs beyond what is there, in 10^6 bytes; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    _wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def drift_settings(labels: int, samples: int) -> DriftConfig:
    """Return the settings of the timed step: N_c labels with N_gen samples and as many positives each."""
    return DriftConfig(
        labels_per_step=labels,
        samples_per_label=samples,
        positives_per_label=samples,
        unconditional_per_label=16,
        bank=BankConfig(class_capacity=64, unconditional_capacity=64, push_per_step=labels, fill_steps=16),
    )


def _training(case: Case, generator: DiT, features: MaeFeatures, loss: LossOfFeatures) -> TrainingLoop[DiT, Any]:
    config, processes = generator.config, Processes(case.device)
    shape = (config.in_channels, config.input_size, config.input_size)
    drift = drift_settings(case.labels, case.samples)
    count = max(256, case.labels)
    real = RealSamples(_RandomSamples(count, shape), [str(n) for n in range(_CLASSES)], shape, "pixels", None, None, {})
    generator.activation_checkpointing = case.checkpointing
    objective = DriftObjective(
        generator,
        processes,
        features=features,
        bank=MemoryBank(_CLASSES, shape, 64, 64).to(case.device),
        stream=SampleStream(real, case.labels, 0, processes),
        config=drift,
        feature_config=FeatureConfig(),
        seed=0,
        loss=loss,
    )
    return TrainingLoop(
        objective,
        OptimizerConfig(precision=case.precision, warmup_steps=0, learning_rate=1e-6, compile=case.compile),
        store=CheckpointStore(Path()),
        display=_NoDisplay(),
        metadata={},
        seed=0,
    )


def _medians(runs: Mapping[str, Callable[[], object]], case: Case) -> dict[str, float]:
    """Return the median duration of each in seconds: they take turns, so that the machine treats them alike."""
    calls = {name: partial(_run_to_the_end, run, case.device) for name, run in runs.items()}
    times = measure_in_turns(calls, rounds=_ROUNDS, repeats=1, turn_s=case.seconds / _ROUNDS)
    return {name: median(found.steady) / 1000 for name, found in times.items()}


def _run_to_the_end(run: Callable[[], object], device: torch.device) -> None:
    run()
    _wait(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _autocast(case: Case) -> Iterator[None]:
    is_half = case.precision == "bfloat16"
    with torch.autocast(case.device.type, dtype=torch.bfloat16) if is_half else nullcontext():
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python " + SCRIPT, description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=tuple(ENCODERS), default=["digits_tiny", "latent_tiny"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--labels", type=int, default=4, help="N_c of a step")
    parser.add_argument("--samples", type=int, default=16, help="N_gen and N_pos")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement at least")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the generator's activations")
    parser.add_argument("--compile", action="store_true", help="compile the generator and the drift loss")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    with command_line() as console:
        device, facts = choose_device(given.device), describe_run(SCRIPT, arguments)
        sizes: dict[str, Any] = {}
        for size in given.sizes:
            case = Case(
                size,
                device,
                precision=given.precision,
                labels=given.labels,
                samples=given.samples,
                seconds=given.seconds,
                checkpointing=given.checkpointing,
                compile=given.compile,
            )
            with console.status(f"measuring {size}"):
                sizes[size] = measure(case)
            console.print(f"{size}: {sizes[size]}", highlight=False)
            settings = {"device": device.type, "precision": given.precision}
            settings |= {"compile": given.compile, "checkpointing": given.checkpointing}
            write_json(given.output, {**facts, **settings, "sizes": sizes})
        console.print(f"written  {given.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
