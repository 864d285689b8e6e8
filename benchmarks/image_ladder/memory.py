"""How much memory a training step of the paper's runs needs on a device, counted without any computation.

    python -m benchmarks.image_ladder.memory

Tensors lie on the meta device, where the largest sum of the tensors that exist at once is found: weights, optimiser,
EMA, queues, and all that a step keeps, for several numbers of processes. Counted twice: in float32, and with generator
and autoencoder in bfloat16 (the loss and ConvNeXt-V2 stay in float32), between which autocast lies. Workspaces of
kernels and gaps of an allocator are not counted. `peak_of_losses` repeats what `benchmarks.image_speed` measures on a
GPU. Leaves results/image_gen/memory.json.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.image_ladder.common import RESULTS
from benchmarks.image_ladder.cost import GENERATORS, Step, on_meta, queues_of, step_of
from benchmarks.image_ladder.plain_loss import PlainDriftLoss
from benchmarks.image_ladder.traffic import StoredFeatures
from benchmarks.image_speed import drift_settings
from drift_policy.cli import command_line
from drift_policy.drift import drift_loss
from drift_policy.manifest import describe_run, write_json
from image_gen.encoders.base import FeatureExtractor, RecomputedFeatures
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_loss import KernelLoss, target_features
from image_gen.feature_maps import Features
from image_gen.training.config import FeatureConfig
from image_gen.training.drift_objective import drifting_loss

SCRIPT = "-m benchmarks.image_ladder.memory"
PROCESSES = (8, 32, 128)
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Of the generator's weights in float32: themselves, two moments of AdamW, and the EMA. A step counts the gradients.
_COPIES = 4


class PeakMemory(TorchDispatchMode):
    """Finds the most bytes that exist at once of the tensors made inside of it.

    Args:
        there: what exists before, and is not counted.
    """

    def __init__(self, there: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = {_key(tensor.untyped_storage()) for tensor in there}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the memory of an operation's results; a view has that of its base."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = _key(storage)
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata


class Given(FeatureExtractor):
    """Gives the same features of whatever images."""

    def __init__(self, given: Features) -> None:
        super().__init__()
        self.given = given

    def features(self, x: Tensor) -> Features:
        """Return them."""
        return self.given


@contextmanager
def _made_in(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def peak_of_step(step: Step, labels: int) -> int:
    """Return the most bytes that a step of some labels makes at once, in the precision of the networks."""
    config, sizes = step.config, step.generator.config
    image = (sizes.in_channels, sizes.input_size, sizes.input_size)
    for weight in step.generator.parameters():
        weight.grad = None
    samples = labels * config.samples_per_label
    there = [*_tensors_of(step.generator), *_tensors_of(step.features)]
    with _made_in(there[0].dtype), PeakMemory(there) as found:
        pos = torch.empty(labels, config.positives_per_label, *image)
        neg = torch.empty(labels, config.unconditional_per_label, *image)
        targets = target_features(step.features.features, pos, neg)
        classes = torch.zeros(samples, dtype=torch.long)
        styles = step.generator.draw_noise_labels(samples, "meta", None)
        images = step.generator(torch.empty(samples, *image), classes, torch.ones(samples), styles)
        gen = images.unflatten(0, (labels, -1))
        loss = drifting_loss(step.features, gen, targets, torch.ones(labels), config, compare_input=True)
        loss.total.backward()
    return found.peak


def peak_of_losses() -> dict[str, int]:
    """Return the most bytes beyond features and targets of both losses, one label of latent_B as in `image_speed`."""
    step = step_of("latent_B")
    sizes = step.generator.config
    image = (sizes.in_channels, sizes.input_size, sizes.input_size)
    with torch.no_grad():
        encoded = step.features.features(torch.empty(1, *image))
    stored = StoredFeatures({name: value.shape[1:] for name, value in encoded.items()})
    config = drift_settings(labels=1, samples=64)
    pos, neg = torch.empty(1, 64, *image), torch.empty(1, 16, *image)
    targets = target_features(stored.features, pos, neg)
    found = {}
    losses: dict[str, KernelLoss] = {"drift loss": drift_loss, "plain loss": PlainDriftLoss()}
    for kind, loss in losses.items():
        gen = torch.empty(1, 64, *image, requires_grad=True)
        leaves = stored.features(gen.flatten(0, 1))
        there = [gen, *leaves.values(), *targets.pos.values(), *(targets.neg or {}).values()]
        with PeakMemory(there) as memory:
            loss_of_features = drifting_loss(
                Given(leaves), gen, targets, torch.ones(1), config, compare_input=True, kernel_loss=loss
            )
            loss_of_features.total.backward()
        found[kind] = memory.peak
    return found


def memory_of(name: str) -> dict[str, Any]:
    """Return the bytes of a run that are always there, and the peaks of a step for each number of processes."""
    step = step_of(name)
    labels = step.config.labels_per_step
    generator, frozen = _bytes_of(step.generator), _bytes_of(step.features)
    return {
        "always": _COPIES * generator + frozen + queues_of(name).nbytes,
        "steps": [
            {"processes": processes, "labels": labels // processes, **_peaks(step, labels // processes)}
            for processes in PROCESSES
            if labels % processes == 0
        ],
    }


def _peaks(step: Step, labels: int) -> dict[str, dict[str, int]]:
    """Return name of the precision -> bytes, without and with `feature.activation_checkpointing`."""
    encoders = [module for module in step.features.modules() if isinstance(module, MaeFeatures)]
    networks = [step.generator, *encoders]  # ConvNeXt-V2 is computed in float32 in every run
    again = replace(step, features=RecomputedFeatures(step.features, FeatureConfig().checkpoint_size))
    peaks: dict[str, dict[str, int]] = {"kept": {}, "checkpointing": {}}
    for precision, number in _TYPES.items():
        for network in networks:
            network.to(number)
        peaks["kept"][precision] = peak_of_step(step, labels)
        peaks["checkpointing"][precision] = peak_of_step(again, labels)
    for network in networks:
        network.to(torch.float32)
    return peaks


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors_of(module))


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and write."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python " + SCRIPT, description=__doc__)
    parser.add_argument("--runs", nargs="+", choices=GENERATORS, default=GENERATORS, help="the paper's runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    given = parser.parse_args(arguments)
    with command_line() as console:
        with on_meta():
            result = {
                **describe_run(SCRIPT, arguments),
                "peak_of_losses": peak_of_losses(),
                "runs": {name: memory_of(name) for name in given.runs},
            }
        write_json(given.output, result)
        console.print(f"written  {given.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
