"""What the drift loss moves through memory in a training step of the paper's runs, counted without any computation.

    python -m benchmarks.image_ladder.traffic

Tensors lie on the meta device, where every operation between the features and the gradient to them counts what it reads
and writes, in float32, as one kernel; caches are not thought of. Beside the loss stands the plain one of
`benchmarks.image_ladder.plain_loss`. Counts the step of one of eight processes. Leaves results/image_gen/traffic.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.image_ladder.common import RESULTS
from benchmarks.image_ladder.cost import GENERATORS, Step, on_meta, step_of
from benchmarks.image_ladder.plain_loss import PlainDriftLoss
from drift_policy.cli import command_line
from drift_policy.drift import DriftInfo, drift_loss
from drift_policy.manifest import describe_run, write_json
from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_loss import KernelLoss, target_features
from image_gen.feature_maps import Features
from image_gen.training.drift_objective import drifting_loss

SCRIPT = "-m benchmarks.image_ladder.traffic"
PROCESSES = 8
# These touch no numbers, and those below only write them.
_FREE = {"aten::detach", "aten::empty", "aten::empty_like", "aten::_unsafe_view", "aten::_assert_async"}
_ONLY_WRITE = {"aten::new_ones", "aten::new_zeros", "aten::ones_like", "aten::zeros_like"}


class CountTraffic(TorchDispatchMode):
    """Counts the kernels inside of it, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count an operation; views move nothing."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and name not in _FREE:
            named = [value for key, value in (kwargs or {}).items() if key != "out"]  # that is the result
            read = [] if name in _ONLY_WRITE else tree_leaves((args, named))
            moved = [value for value in (*read, *tree_leaves(result)) if isinstance(value, Tensor)]
            self.kernels += 1
            self.bytes += sum(_stored_bytes(value) for value in moved)
        return result


def _stored_bytes(value: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded is stored once."""
    numbers = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * value.element_size()


class StoredFeatures(FeatureExtractor):
    """Features of the shapes that an encoder gives, without encoding.

    Args:
        shapes: [locations, channels] of each.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.shapes = shapes
        self.latest: Features = {}

    def features(self, x: Tensor) -> Features:
        """Return new ones of images [n, ...]: name -> [n, locations, channels]."""
        needs_gradient = torch.is_grad_enabled()
        self.latest = {
            name: torch.empty(len(x), *shape, requires_grad=needs_gradient) for name, shape in self.shapes.items()
        }
        return self.latest


@dataclass
class MatrixBytes:
    """A loss of kernel problems that counts the bytes that do not grow with the size of its samples."""

    loss: KernelLoss
    bytes: int = 0  # of [samples, targets] matrices: affinities of all temperatures, and what leads to them

    def __call__(
        self,
        gen: Tensor,
        pos: Tensor,
        neg: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, DriftInfo]:
        """Return what the loss returns; the settings are those of `KernelLoss`."""
        once, twice = (self._moved((gen, pos, neg), factor, settings) for factor in (1, 2))
        self.bytes += 2 * once - twice  # a, where samples of size S move a + b S
        return self.loss(gen, pos, neg, **settings)

    def _moved(self, samples: Sequence[Tensor | None], factor: int, settings: Mapping[str, Any]) -> int:
        """Return the bytes for samples of `factor` times the size."""
        gen, pos, neg = (None if one is None else torch.empty(*one.shape[:2], factor * one.shape[2]) for one in samples)
        assert gen is not None and pos is not None  # only `neg` may be absent
        gen.requires_grad_()
        with CountTraffic() as counted:
            loss, _ = self.loss(gen, pos, neg, **settings)
            torch.autograd.grad(loss, gen, torch.ones_like(loss))
        return counted.bytes


def traffic_of(name: str) -> dict[str, Any]:
    """Return kernels and bytes of the losses in a step of one of `PROCESSES`, and the FLOPs of the rest of it."""
    step = step_of(name)
    if step.config.labels_per_step % PROCESSES:
        raise ValueError(f"{name} has {step.config.labels_per_step} labels, which {PROCESSES} processes cannot share.")
    networks = sum(flops for part, flops in step.flops().items() if part != "loss")
    losses: dict[str, KernelLoss] = {"drift loss": drift_loss, "plain loss": PlainDriftLoss()}
    return {
        "labels": step.config.labels_per_step // PROCESSES,
        "flops_of_networks": networks // PROCESSES,
        "losses": {kind: _counts(step, loss) for kind, loss in losses.items()},
    }


def _counts(step: Step, loss: KernelLoss) -> dict[str, int]:
    sizes, drift = step.generator.config, step.config
    image = (sizes.in_channels, sizes.input_size, sizes.input_size)
    labels = drift.labels_per_step // PROCESSES
    numbers = (drift.samples_per_label, drift.positives_per_label, drift.unconditional_per_label)
    gen, pos, neg = (torch.empty(labels, number, *image) for number in numbers)
    gen.requires_grad_()
    with torch.no_grad():
        encoded = step.features.features(torch.empty(1, *image))
    stored = StoredFeatures({name: value.shape[1:] for name, value in encoded.items()})
    targets, scale = target_features(stored.features, pos, neg), torch.ones(labels)
    matrices = MatrixBytes(loss)
    drifting_loss(stored, gen, targets, scale, drift, compare_input=True, kernel_loss=matrices)
    with CountTraffic() as counted:
        total = drifting_loss(stored, gen, targets, scale, drift, compare_input=True, kernel_loss=loss).total
        torch.autograd.grad(total, [gen, *stored.latest.values()])
    return {"kernels": counted.kernels, "bytes": counted.bytes, "bytes_of_matrices": matrices.bytes}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and write."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python " + SCRIPT, description=__doc__)
    parser.add_argument("--runs", nargs="+", choices=GENERATORS, default=GENERATORS, help="the paper's runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "traffic.json")
    given = parser.parse_args(arguments)
    with command_line() as console:
        with on_meta():
            runs = {name: traffic_of(name) for name in given.runs}
        write_json(given.output, {**describe_run(SCRIPT, arguments), "processes": PROCESSES, "runs": runs})
        console.print(f"written  {given.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
