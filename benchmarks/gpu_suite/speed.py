"""Speed of training at the original sizes: samples/s, memory, and where the time of an update goes.

    python -m benchmarks.gpu_suite.speed --output OUT

For the U-Net on states (256-512-1024, batch 256), the U-Net on images (512-1024-2048, ResNet-18, batch 64) and the
transformer on states (8 layers of 256, batch 256), each with the drift head (8 samples an observation) and the
diffusion head, in every mode. Writes OUT/speed.json; what does not fit into the time budget is named there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite.breakdown import MarkedUpdate, median_parts
from benchmarks.gpu_suite.command import (
    Budget,
    add_common_arguments,
    open_device,
    peak_memory_mb,
    positive_integer,
    positive_number,
    reset_peak_memory,
    run_program,
    synchronize,
)
from benchmarks.gpu_suite.policies import (
    IMAGE_UNET,
    STATE_TRANSFORMER,
    STATE_UNET,
    TRAINED_HEADS,
    Sizes,
    make_policy,
    num_parameters,
    policy_config,
    trainer_config,
)
from benchmarks.gpu_suite.prepared import Prepared, prepared_path, read_prepared
from drift_policy.data.window_batches import WindowBatches
from drift_policy.drift import drift_loss
from drift_policy.errors import require
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy import Policy
from drift_policy.training.batches import ResidentBatches
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import batch_indices
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import PolicyUpdate

MODES = {  # name -> precision, whether compiled (on a GPU with CUDA graphs)
    "float32": ("float32", False),
    "tfloat32": ("tfloat32", False),
    "bfloat16": ("bfloat16", False),
    "tfloat32_compiled": ("tfloat32", True),
    "bfloat16_compiled": ("bfloat16", True),
}
NETWORKS: dict[str, tuple[str, Sizes]] = {
    "state_unet": ("state", STATE_UNET),
    "image_unet": ("image", IMAGE_UNET),
    "state_transformer": ("state", STATE_TRANSFORMER),
}
TINY: dict[str, tuple[str, Sizes]] = {  # to try the program out, not to measure
    "state_unet": ("state", Sizes(down_dims=[16, 32], step_embedding=8)),
    "image_unet": ("image", Sizes(down_dims=[16, 32], step_embedding=8, backbone="small_cnn")),
    "state_transformer": ("state", Sizes(network="transformer", layers=1, width=8)),
}
LARGEST_LOSS_SHARE = 0.1  # goal: what the drift loss may take of a step
_SEED = 0
_FIRST_CASE_S = {False: 15.0, True: 120.0}  # whether compiled -> what the first such case may need


class Bench:
    """Times the updates of one case after the other.

    Args:
        device: to train on.
        warm_up: updates before the timing.
        updates: that are timed at most.
        seconds: for the timed updates of a case; at least three are timed.
        batch_size: in place of the original ones.
    """

    def __init__(
        self, device: torch.device, *, warm_up: int, updates: int, seconds: float, batch_size: int | None
    ) -> None:
        self._device, self._warm_up, self._updates, self._seconds = device, warm_up, updates, seconds
        self._batch_size = batch_size

    def measure(self, prepared: Prepared, windows: WindowBatches, head: str, sizes: Sizes, mode: str) -> dict[str, Any]:
        """Return the row of a case.

        Args:
            prepared: the demonstrations.
            windows: of them, on the device.
            head: "drift" or "diffusion".
            sizes: of the network.
            mode: a key of MODES.
        """
        precision, is_compiled = MODES[mode]
        changes = {} if self._batch_size is None else {"batch_size": self._batch_size}
        config = trainer_config(sizes.network, prepared.has_images, precision=precision, compile=is_compiled, **changes)
        if is_compiled:  # what was compiled for another case keeps its memory, and would be tried first
            torch.compiler.reset()
        reset_peak_memory(self._device)
        policy = make_policy(prepared, policy_config(prepared, TRAINED_HEADS[head], sizes), _SEED, self._device)
        parameters = num_parameters(policy)
        step_ms, start_s = self._time_updates(policy, windows, config)
        row: dict[str, Any] = {
            "batch_size": config.batch_size,
            "parameters": parameters,
            "step_ms": step_ms,
            "samples_per_s": config.batch_size / step_ms * 1000,
            "start_s": start_s,
            "peak_memory_mb": peak_memory_mb(self._device),
        }
        if not is_compiled:
            row["breakdown_ms"] = self._break_down(policy, windows, config)
        if head == "drift":
            row |= self._loss_share(row, config, [prepared.horizon, prepared.action.shape[1]])
        return row

    def _time_updates(self, policy: Policy, windows: WindowBatches, config: TrainerConfig) -> tuple[float, float]:
        """Return the mean milliseconds of an update, and the seconds of the first ones."""
        update = PolicyUpdate(policy, Ema(policy, config.ema_decay), config, Processes(self._device), _SEED)
        batches = _batches(update, windows, config)
        started = time.perf_counter()
        for step in range(self._warm_up):
            update(step, batches.step(step))
        synchronize(self._device)
        start_s = time.perf_counter() - started
        step_ms = self._mean_ms(lambda step: update(step, batches.step(step)), first=self._warm_up)
        return step_ms, start_s

    def _break_down(self, policy: Policy, windows: WindowBatches, config: TrainerConfig) -> dict[str, float]:
        update = MarkedUpdate(policy, config, _SEED)
        batches = _batches(update.update, windows, config)
        for step in range(3):  # the kernels are chosen already
            update(step, batches.step(step))
        steps: list[dict[str, float]] = []
        self._mean_ms(lambda step: steps.append(update(step, batches.step(step))), first=3)
        return median_parts(steps)

    def _loss_share(self, row: dict[str, Any], config: TrainerConfig, chunk: list[int]) -> dict[str, float]:
        """Time the drift loss alone, forward and backward, on as many samples as in the update."""
        head = DriftHeadConfig()
        shape = (config.batch_size, head.samples_per_observation, prod(chunk))
        samples = torch.randn(shape, device=self._device, requires_grad=True)
        positives = torch.randn(shape[0], 1, shape[2], device=self._device)

        def loss() -> torch.Tensor:
            return drift_loss(samples, positives, temperatures=head.temperatures, affinity_floor=head.affinity_floor)[0]

        compute: Callable[[], torch.Tensor] = loss
        if config.compile:
            compute = torch.compile(loss, mode="reduce-overhead" if self._device.type == "cuda" else None)

        def forward_and_backward(_: int) -> None:
            if config.compile:
                torch.compiler.cudagraph_mark_step_begin()
            compute().mean().backward()
            samples.grad = None

        for step in range(self._warm_up):
            forward_and_backward(step)
        alone = self._mean_ms(forward_and_backward, first=0)
        return {"drift_loss_alone_ms": alone, "drift_loss_share": alone / row["step_ms"]}

    def _mean_ms(self, call: Callable[[int], object], first: int) -> float:
        """Call as often as the settings say, without waiting in between, and return the mean milliseconds."""
        synchronize(self._device)
        started = time.perf_counter()
        done = 0
        while done < self._updates and (done < 3 or time.perf_counter() - started < self._seconds):
            call(first + done)
            done += 1
        synchronize(self._device)
        return (time.perf_counter() - started) / done * 1000


def _batches(update: PolicyUpdate, windows: WindowBatches, config: TrainerConfig) -> ResidentBatches:
    require(
        len(windows) >= config.batch_size,
        f"A batch has {config.batch_size} windows, but there are {len(windows)}: give a smaller --batch-size.",
    )
    return ResidentBatches(
        windows, lambda step: update.parts(batch_indices(step, len(windows), config.batch_size, _SEED))
    )


class Report:
    """The rows measured so far, in OUT/speed.json.

    Args:
        path: of the file.
        facts: that stand above the rows.
        cases: names of all cases, to be measured in this order.
    """

    def __init__(self, path: Path, facts: dict[str, Any], cases: list[str]) -> None:
        self._path, self._facts, self._open = path, facts, list(cases)
        self._rows: dict[str, Any] = {}
        self._write()

    def add(self, case: str, row: dict[str, Any]) -> None:
        """Write a row and print it."""
        self._open.remove(case)
        self._rows[case] = row
        self._write()
        memory, share = row["peak_memory_mb"], row.get("drift_loss_share")
        print(
            f"{case}: {row['samples_per_s']:.0f} samples/s, {row['step_ms']:.2f} ms a step"
            + ("" if memory is None else f", {memory:.0f} MB")
            + ("" if share is None else f", drift loss {share:.1%} (goal: at most {LARGEST_LOSS_SHARE:.0%})"),
            flush=True,
        )
        if "breakdown_ms" in row:
            print("   ", ", ".join(f"{part} {ms:.2f}" for part, ms in row["breakdown_ms"].items()), flush=True)

    def _write(self) -> None:
        write_json(self._path, {**self._facts, "cases": self._rows, "not_measured": self._open})


def measure_all(given: argparse.Namespace, budget: Budget) -> None:
    """Measure the cases that fit into the budget, those that are not compiled first."""
    device = open_device(given.device)
    networks = TINY if given.tiny else NETWORKS
    cases = {
        f"{network}/{head}/{mode}": (network, head, mode)
        for mode, network, head in product(given.modes, given.networks, given.heads)
    }
    facts = {
        **describe_run("-m benchmarks.gpu_suite.speed", given.arguments),
        "goal": {"drift_loss_share_of_unet_step": LARGEST_LOSS_SHARE},
        "sizes": {name: networks[name][1].__dict__ for name in given.networks},
    }
    report = Report(given.output / "speed.json", facts, list(cases))
    bench = Bench(
        device, warm_up=given.warm_up, updates=given.updates, seconds=given.case_seconds, batch_size=given.batch_size
    )
    tasks = sorted({networks[name][0] for name in given.networks})
    prepared = {task: read_prepared(prepared_path(given.prepared, task)) for task in tasks}
    windows = {task: prepared[task].windows(device) for task in tasks}
    longest = dict(_FIRST_CASE_S)
    for case, (network, head, mode) in cases.items():
        task, sizes = networks[network]
        is_compiled = MODES[mode][1]
        if budget.left() < longest[is_compiled]:
            continue  # a shorter one may still fit
        started = time.perf_counter()
        report.add(case, bench.measure(prepared[task], windows[task], head, sizes, mode))
        longest[is_compiled] = max(longest[is_compiled], 1.2 * (time.perf_counter() - started))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--heads", nargs="+", choices=tuple(TRAINED_HEADS), default=tuple(TRAINED_HEADS))
    parser.add_argument(
        "--modes", nargs="+", choices=tuple(MODES), default=("float32", "bfloat16", "bfloat16_compiled")
    )
    parser.add_argument("--warm-up", type=positive_integer, default=10, help="updates before the timing of a case")
    parser.add_argument("--updates", type=positive_integer, default=100, help="timed updates of a case at most")
    parser.add_argument("--case-seconds", type=positive_number, default=8.0, help="for the timed updates of a case")
    parser.add_argument("--batch-size", type=positive_integer, default=None, help="in place of the original ones")
    parser.add_argument("--tiny", action="store_true", help="toy networks, to try the program out")
    given = parser.parse_args(arguments)
    given.arguments = list(arguments)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    measure_all(given, Budget(given.time_budget_s))


if __name__ == "__main__":
    run_program(main)
