"""Throughput of training on a CPU, as a ratio to loops of plain PyTorch that never change.

    python -m benchmarks.training_throughput [--only image] [--threads 1] [--output results/training_throughput.json]

A ratio can be held against that of another version, where a time would say more about the machine and its load. The
updates are those of the trainer with the shipped configurations, on random demonstrations of Push-T's sizes. All are
timed in turns; every ratio is taken within a round, and the median of the rounds is reported with its quartiles. A
sample is a window of the demonstrations, as in metrics.csv.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from drift_policy.cli import resolved
from drift_policy.config import parse_choice, parse_config
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.sources import ResolvedData
from drift_policy.drift import drift_loss, energy_loss
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.manifest import describe_run, write_json
from drift_policy.task import Demonstrations
from drift_policy.training.batches import make_batches
from drift_policy.training.config import TrainConfig
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.run import build_policy_and_data
from drift_policy.training.schedule import batch_indices
from drift_policy.training.update import PolicyUpdate

CONFIGS = Path(__file__).parent.parent / "configs"
CPU = torch.device("cpu")
EPISODES, EPISODE_STEPS = 206, 125  # Push-T: 206 episodes, 25,650 steps
IMAGE_EPISODES = 33  # images enough that a batch comes from memory, not from the cache of the CPU

MLP_LOOP, CNN_LOOP = "plain MLP", "plain CNN"
DRIFT, LOSS = "drift, state", "drift loss alone"
IMAGE, IMAGE_LOSS = "drift, image", "drift loss alone, image"
LOSS_OF = {DRIFT: LOSS, IMAGE: IMAGE_LOSS}  # an update, and its loss: the kernel is a setting of the task
ALWAYS = (MLP_LOOP, DRIFT, LOSS)  # what the other updates are held against
BFLOAT16 = "drift, state, bfloat16"
PARTS = {
    "state": (),
    "precision": (BFLOAT16,),
    "heads": ("diffusion, state", "regression, state"),
    "image": (CNN_LOOP, IMAGE, IMAGE_LOSS),
}


# The references, down to the next line of dashes. NEVER CHANGE THEM: results of all versions are held against them.
# They use PyTorch alone, nothing of drift_policy and no constant from outside. A test compares their source with its
# recorded hash. If the default network gets other sizes, they keep theirs.
# ----------------------------------------------------------------------------------------------------------------------
class ReferenceMlp(nn.Module):
    """A residual MLP from a sample and a condition to a chunk of 32 numbers."""

    def __init__(self, condition_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(32 + condition_size, 256)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256)) for _ in range(6)
        )
        self.output = nn.Linear(256, 32)

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        """Map samples [64, 8, 32] and conditions [64, C] to chunks [64, 8, 32]."""
        hidden = self.input(torch.cat([sample, condition.unsqueeze(1).expand(-1, 8, -1)], dim=2))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        chunks: Tensor = self.output(hidden)
        return chunks


class ReferenceCnn(nn.Sequential):
    """Three convolutions, the mean over all places, a linear layer: [N, 3, 84, 84] -> [N, 64]."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.GroupNorm(1, 16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(2, 32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=1, padding=1), nn.GroupNorm(4, 64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64)),
        )


def reference_descent(
    network: ReferenceMlp,
    conditions: Tensor,
    chunks: Tensor,
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Do one update towards chunks [64, 32] by the mean squared error."""
    loss = (network(torch.randn(64, 8, 32), conditions) - chunks.unsqueeze(1)).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 2.0)
    optimizer.step()
    optimizer.zero_grad()


def reference_mlp_loop() -> Callable[[], None]:
    """Return the update of a loop on conditions of 40 numbers."""
    network = ReferenceMlp(condition_size=40)
    parameters: list[Tensor] = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    conditions, chunks = torch.randn(24000, 40), torch.randn(24000, 32)

    def update() -> None:
        rows = torch.randint(24000, (64,))
        reference_descent(network, conditions[rows], chunks[rows], parameters, optimizer)

    return update


def reference_cnn_loop() -> Callable[[], None]:
    """Return the update of a loop on two images and four numbers."""
    cnn, network = ReferenceCnn(), ReferenceMlp(condition_size=2 * 64 + 4)
    parameters: list[Tensor] = [*cnn.parameters(), *network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    images = torch.randint(256, (2048, 2, 3, 84, 84), dtype=torch.uint8)
    numbers, chunks = torch.randn(2048, 4), torch.randn(2048, 32)

    def update() -> None:
        rows = torch.randint(2048, (64,))
        features = cnn(images[rows].flatten(0, 1).float() / 127.5 - 1.0).view(64, 128)
        conditions = torch.cat([features, numbers[rows]], dim=1)
        reference_descent(network, conditions, chunks[rows], parameters, optimizer)

    return update


# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Something that is timed."""

    call: Callable[[], object]
    kind: str  # "reference", "update", or "part" of an update
    batch_size: int  # windows of the demonstrations in a call
    reference: str  # name of the loop it is held against


def random_demonstrations(images: bool) -> Demonstrations:
    """Return random numbers in the layout of Push-T: images and states, or keypoints and states."""
    rng = np.random.default_rng(0)
    episodes = IMAGE_EPISODES if images else EPISODES
    steps = episodes * EPISODE_STEPS
    columns: dict[str, NDArray[Any]] = {
        name: rng.uniform(0, 512, (steps, *shape)).astype(np.float32)
        for name, shape in (("keypoint", (9, 2)), ("state", (5,)), ("action", (2,)))
    }
    if images:
        columns["img"] = rng.integers(256, size=(steps, 96, 96, 3), dtype=np.uint8)
    buffer = ReplayBuffer(columns, np.arange(1, episodes + 1) * EPISODE_STEPS)
    return Demonstrations(buffer, ResolvedData(Path("random"), "path", "random numbers"))


def shipped_config(policy: str, task: str, *further: str) -> TrainConfig:
    """Return the configuration of `python train_policy.py task=<task> policy=<policy> <further>`."""
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        # The default name asks the running program, which is not train_policy.py.
        # Random numbers have no mirror image; it is no part of an update.
        settings = [
            f"task={task}",
            f"policy={policy}",
            "name=throughput",
            "device=cpu",
            "policy.mirrored=false",
            *further,
        ]
        composed = compose("train", settings)
    return parse_config(TrainConfig, resolved(composed))


def update_case(config: TrainConfig, demonstrations: Demonstrations, reference: str) -> Case:
    """Return the trainer's update: gathering the batch, loss, backward, clipping, AdamW, average of the weights."""
    trainer, seed = config.trainer, config.seed
    policy, data = build_policy_and_data(config, demonstrations, CPU)
    update = PolicyUpdate(policy, Ema(policy, trainer.ema_decay), trainer, Processes(CPU), seed)
    batches = make_batches(
        data.train,
        lambda step: update.parts(batch_indices(step, len(data.train), trainer.batch_size, seed)),
        trainer,
        device=CPU,
        memory_mapped=data.memory_mapped,
    )
    steps = count()

    def call() -> None:
        step = next(steps)
        update(step, batches.step(step))

    return Case(call, "update", trainer.batch_size, reference)


def loss_case(config: TrainConfig, reference: str) -> Case:
    """Return forward and backward pass of the head's loss alone, from samples [B, G, S] to their gradient."""
    _, settings = parse_choice(config.policy["head"], "policy.head")
    head = parse_config(DriftHeadConfig, settings, "policy.head")
    problems, size = config.trainer.batch_size, config.task.horizon * 2
    if head.per_time_step:
        problems, size = problems * config.task.horizon, 2
    samples = torch.randn(problems, head.samples_per_observation, size, requires_grad=True)
    positives = torch.randn(problems, 1, size)

    def affinity() -> Tensor:
        return drift_loss(
            samples,
            positives,
            temperatures=head.temperatures,
            affinity_floor=head.affinity_floor,
            scope="group" if head.scope == "group" else "batch",
        )[0]

    def energy() -> Tensor:
        return energy_loss(samples, positives)[0]

    loss = energy if head.kernel == "energy" else affinity

    def call() -> None:
        loss().mean().backward()
        samples.grad = None

    return Case(call, "part", config.trainer.batch_size, reference)


def make_cases(parts: Sequence[str]) -> dict[str, Case]:
    """Return what is timed, by name, in the order of timing: each update comes soon after its reference.

    Args:
        parts: keys of PARTS.
    """
    torch.manual_seed(0)
    chosen = {*ALWAYS, *(name for part in parts for name in PARTS[part])}
    default, states = shipped_config("drift", "pusht"), random_demonstrations(images=False)
    camera = shipped_config("drift", "pusht_image")
    makers: dict[str, Callable[[], Case]] = {
        MLP_LOOP: lambda: Case(reference_mlp_loop(), "reference", 64, MLP_LOOP),
        DRIFT: lambda: update_case(default, states, MLP_LOOP),
        LOSS: lambda: loss_case(default, MLP_LOOP),
        BFLOAT16: lambda: update_case(shipped_config("drift", "pusht", "trainer.precision=bfloat16"), states, MLP_LOOP),
        "diffusion, state": lambda: update_case(shipped_config("diffusion", "pusht"), states, MLP_LOOP),
        "regression, state": lambda: update_case(shipped_config("regression", "pusht"), states, MLP_LOOP),
        CNN_LOOP: lambda: Case(reference_cnn_loop(), "reference", 64, CNN_LOOP),
        IMAGE: lambda: update_case(camera, random_demonstrations(images=True), CNN_LOOP),
        IMAGE_LOSS: lambda: loss_case(camera, CNN_LOOP),
    }
    return {name: make() for name, make in makers.items() if name in chosen}


def measure(cases: dict[str, Case], rounds: int, steps: int) -> dict[str, NDArray[np.float64]]:
    """Time every case in turns, [rounds, steps] in seconds; the first call of each round only warms up."""
    times = {name: np.empty((rounds, steps)) for name in cases}
    for number in track(range(rounds), description="timing"):
        for name, case in cases.items():
            case.call()
            for step in range(steps):
                started = time.perf_counter()
                case.call()
                times[name][number, step] = time.perf_counter() - started
    return times


def summarize(cases: dict[str, Case], times: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, Any]]:
    """Return rates and ratios of every case.

    Args:
        cases: what was timed.
        times: seconds of each call, [rounds, steps].
    """
    in_round = {name: np.median(values, axis=1) for name, values in times.items()}
    return {
        name: {
            "kind": case.kind,
            "batch_size": case.batch_size,
            "steps_per_s": float(1 / np.median(times[name])),
            "samples_per_s": float(case.batch_size / np.median(times[name])),
            "reference": case.reference,
            "steps_times_reference": _over_rounds(in_round[case.reference] / in_round[name]),
            "samples_times_drift": _over_rounds(
                case.batch_size / cases[DRIFT].batch_size * in_round[DRIFT] / in_round[name]
            ),
            "drift_loss_share": _over_rounds(in_round[LOSS_OF[name]] / in_round[name]) if name in LOSS_OF else None,
        }
        for name, case in cases.items()
    }


def _over_rounds(ratios: NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def print_summary(summary: dict[str, dict[str, Any]], threads: int) -> None:
    """Print one row a case."""
    table = Table(
        *("what", "batch", "steps/s", "samples/s", "x plain loop", "loss"),
        title=f"training on a CPU, {threads} thread(s)",
        caption="x plain loop: steps/s as a ratio, with quartiles; loss: its own drift loss's share of the time",
    )
    for name, row in summary.items():
        ratio, share = row["steps_times_reference"], row["drift_loss_share"]
        table.add_row(
            name,
            str(row["batch_size"]),
            f"{row['steps_per_s']:.1f}",
            f"{row['samples_per_s']:.0f}",
            f"{ratio['median']:.2f} \\[{ratio['low']:.2f}, {ratio['high']:.2f}]",
            "" if share is None else f"{share['median']:.1%}",
        )
    Console().print(table)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="parts; all by default")
    parser.add_argument("--threads", type=_positive, default=1)
    parser.add_argument("--rounds", type=_positive, default=20)
    parser.add_argument("--steps", type=_positive, default=5, help="timed updates of each case in a round")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    load = os.getloadavg()[0]  # well above zero: other programs were running, and the rates are too low
    cases = make_cases(arguments.only)
    summary = summarize(cases, measure(cases, arguments.rounds, arguments.steps))
    print_summary(summary, arguments.threads)
    if arguments.output:
        facts = describe_run("-m benchmarks.training_throughput", sys.argv[1:])
        settings = {"rounds": arguments.rounds, "steps": arguments.steps, "load_average_before": load}
        write_json(arguments.output, {**facts, **settings, "cases": summary})


if __name__ == "__main__":
    main()
