"""Train policies for their scores; `benchmarks.gpu_suite.score` rolls them out elsewhere.

    python -m benchmarks.gpu_suite.train --task state --head drift --network unet --seeds 0 1 --output OUT

Runs the trainer's own update on data that lie on the device. Leaves OUT/<name>.json and the averaged weights of some
steps along the way as OUT/<name>.<number>.safetensors. While the learning rate still warms up, the number of steps is
lowered to what fits into the time budget; every checkpoint is written at once.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.gpu_suite.command import (
    Budget,
    add_common_arguments,
    open_device,
    positive_integer,
    positive_number,
    reset_peak_memory,
    run_program,
    synchronize,
)
from benchmarks.gpu_suite.pieces import Piece, PieceWriter, num_bytes
from benchmarks.gpu_suite.policies import (
    BACKBONES,
    NETWORKS,
    TRAINED_HEADS,
    Sizes,
    num_parameters,
    policy_config,
    trainer_config,
)
from benchmarks.gpu_suite.prepared import TASKS, prepared_path, read_prepared
from benchmarks.gpu_suite.training import WARM_STEPS, DivergedError, Training
from drift_policy.errors import require
from drift_policy.manifest import describe_run, write_json
from drift_policy.training.trainer_config import PRECISIONS

MOST_PARAMETERS = 28_000_000
PLANNED_AT = 3 * WARM_STEPS  # updates after which the speed is known
_USED_SHARE = 0.95  # of the time that is left when the steps are planned: speeds vary a little
_RESERVED_SHARE = 0.03  # of the whole budget, to write and to end


class Session:
    """The trainings of one call: they share a time budget and what may be brought back.

    Args:
        given: the arguments.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._budget = Budget(given.time_budget_s)
        self._given = given
        self._facts = describe_run("-m benchmarks.gpu_suite.train", given.arguments)  # of the start
        self._device = open_device(given.device)
        self._prepared = read_prepared(prepared_path(given.prepared, given.task))
        self._windows = self._prepared.windows(self._device)
        self._policy = policy_config(self._prepared, TRAINED_HEADS[given.head], _sizes(given))
        changes = {name: getattr(given, name) for name in ("batch_size", "learning_rate", "warmup_steps", "ema_decay")}
        self._config = trainer_config(
            given.network,
            self._prepared.has_images,
            num_steps=given.steps,
            precision=given.precision,
            compile=given.compile,
            log_every=given.log_every,
            **{name: value for name, value in changes.items() if value is not None},
        )
        require(
            len(self._windows) >= self._config.batch_size,
            f"--batch-size {self._config.batch_size} is larger than the {len(self._windows)} training windows.",
        )
        require(len(set(given.seeds)) == len(given.seeds), f"--seeds {given.seeds} names a seed twice.")
        self._name = given.name or f"{given.task}_{given.head}_{given.network}"
        self._writer = PieceWriter(given.output, self._name)
        self._pieces: list[Piece] = []
        self._runs: list[dict[str, Any]] = []
        self._parameters = 0

    def run(self) -> None:
        """Train one seed after the other, as far as the time goes."""
        seeds: list[int] = self._given.seeds
        reserve = _RESERVED_SHARE * self._budget.seconds
        for position, seed in enumerate(seeds):
            share = Budget((self._budget.left() - reserve) / (len(seeds) - position))
            if share.seconds <= 0:
                break
            self._train(seed, share, is_first=position == 0)

    def _train(self, seed: int, share: Budget, is_first: bool) -> None:
        reset_peak_memory(self._device)
        if self._config.compile:  # compiled code and captured graphs hold the tensors that they were made for
            torch.compiler.reset()
        training = Training(self._prepared, self._windows, self._policy, replace(self._config), seed)
        if is_first:
            self._check_sizes(training)
        self._runs.append({})
        checkpoints: list[dict[str, Any]] = []
        ended = "steps"
        try:
            while training.step < training.config.num_steps and ended == "steps":
                training.advance()
                if training.step == PLANNED_AT and is_first:
                    training.plan(_USED_SHARE * share.left())
                    self._config.num_steps = training.config.num_steps  # all seeds train equally long
                if share.left() <= 0 and training.step < training.config.num_steps:
                    ended = "time"
                is_stopped = ended == "time" and len(checkpoints) < len(self._given.fractions)
                if is_stopped or training.step in self._checkpoint_steps(training.config.num_steps):
                    self._store(training, checkpoints)
        except DivergedError as error:
            ended = str(error)
        self._write(training, checkpoints, ended)

    def _checkpoint_steps(self, num_steps: int) -> set[int]:
        first = PLANNED_AT if num_steps > PLANNED_AT else 1  # not before the number of steps is final
        return {max(first, round(fraction * num_steps)) for fraction in self._given.fractions}

    def _store(self, training: Training, checkpoints: list[dict[str, Any]]) -> None:
        synchronize(training.device)
        seconds, started = training.clock.training_s(), time.perf_counter()
        tensors = f"{training.seed}/{training.step}"
        self._pieces = self._writer.add(tensors, training.stored())
        checkpoints.append({"step": training.step, "seconds": seconds, "tensors": tensors})
        self._write(training, checkpoints, "not yet")
        training.clock.paused_s += time.perf_counter() - started

    def _write(self, training: Training, checkpoints: list[dict[str, Any]], ended: str) -> None:
        given = self._given
        run = {**training.describe(), "ended": ended, "checkpoints": checkpoints}
        self._runs[-1] = run
        done = {run["seed"] for run in self._runs}
        content = {
            **self._facts,
            "name": self._name,
            "task": given.task,
            "head": given.head,
            "parameters": self._parameters,
            "policy": self._policy.to_mapping(),
            "metadata": self._prepared.metadata,
            "trainer": asdict(training.config),
            "time_budget_s": self._budget.seconds,
            "time_used_s": self._budget.seconds - self._budget.left(),
            "pieces": [asdict(piece) for piece in self._pieces],
            "runs": self._runs,
            "not_started": [seed for seed in given.seeds if seed not in done],
        }
        write_json(given.output / f"{self._name}.json", content)
        print(
            f"seed {run['seed']}: step {run['steps']} of {run['planned_steps']}, {run['seconds']:.1f} s, "
            f"{run['samples_per_s']:.0f} samples/s, ended: {ended}",
            flush=True,
        )

    def _check_sizes(self, training: Training) -> None:
        """Require that the network may be trained here, and that its checkpoints may be brought back."""
        self._parameters = num_parameters(training.policy)
        require(
            self._parameters <= MOST_PARAMETERS,
            f"The policy has {self._parameters / 1e6:.1f} M parameters, but at most {MOST_PARAMETERS / 1e6:.0f} M can "
            "be brought back: give smaller --down-dims, or --image-backbone small_cnn.",
        )
        count = len(self._given.seeds) * len(self._given.fractions)
        megabytes = count * num_bytes(training.stored()) / 1e6
        require(
            megabytes <= self._given.max_megabytes,
            f"{count} checkpoints have {megabytes:.0f} MB, but --max-megabytes is {self._given.max_megabytes:g}: give "
            "fewer --fractions or --seeds, or a smaller network.",
        )


def _sizes(given: argparse.Namespace) -> Sizes:
    return Sizes(
        network=given.network,
        down_dims=given.down_dims,
        step_embedding=given.step_embedding,
        layers=given.layers,
        width=given.width,
        backbone=given.image_backbone,
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, but is {text}")
    return value


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--head", choices=sorted(TRAINED_HEADS), required=True)
    parser.add_argument("--network", choices=NETWORKS, default="unet")
    parser.add_argument("--name", default=None, help="of the files; <task>_<head>_<network> by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=positive_integer, default=100000, help="optimiser steps at most")
    parser.add_argument(
        "--fractions", type=_share, nargs="+", default=[1.0], help="shares of the steps after which weights are stored"
    )
    parser.add_argument("--max-megabytes", type=positive_number, default=60.0, help="of all weights that are stored")
    parser.add_argument("--down-dims", type=positive_integer, nargs="+", default=[64, 128, 256], help="of the U-Net")
    parser.add_argument("--step-embedding", type=positive_integer, default=128, help="of the U-Net")
    parser.add_argument("--layers", type=positive_integer, default=8, help="of the transformer")
    parser.add_argument("--width", type=positive_integer, default=256, help="of the transformer")
    parser.add_argument("--image-backbone", choices=sorted(BACKBONES), default="resnet18")
    parser.add_argument("--batch-size", type=positive_integer, default=None, help="by default 256, with images 64")
    parser.add_argument("--learning-rate", type=positive_number, default=None, help="by default 1e-4")
    parser.add_argument("--warmup-steps", type=int, default=None, help="by default 500, of the transformer 1000")
    parser.add_argument("--ema-decay", type=float, default=None, help="by default 0.9999")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the update; CUDA graphs on a GPU")
    parser.add_argument("--log-every", type=positive_integer, default=200)
    given = parser.parse_args(arguments)
    given.arguments = list(arguments)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Train."""
    Session(parse(sys.argv[1:] if arguments is None else arguments)).run()


if __name__ == "__main__":
    run_program(main)
