"""Behaviour cloning with known modes: which of them does a policy learn from ONE demonstration per observation?

Every observation has K equally likely chunks; a training step shows one of them, with a little noise. A policy may hit
the modes, keep only some, or command their mean, which no demonstrator ever did.

    python -m benchmarks.multimodal_toy policy=drift num_modes=2 policy.head.kernel=energy

trains in a minute and writes manifest.json and samples.png to runs/multimodal_toy/<name>.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib import pyplot as plt
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from drift_policy import Policy, build_policy
from drift_policy.cli import command_line, resolved
from drift_policy.composition import composition_errors
from drift_policy.config import parse_config
from drift_policy.data.normalizer import Normalizer
from drift_policy.errors import require
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy_config import policy_config_from_mapping

DA = 2  # numbers of an action
OBS_DIM = 2
MODE_LENGTH = 0.8  # amplitude of a mode's sine waves
ON_MODE = 0.25  # of the distance between neighbouring modes: nearer counts as on the mode
KEPT = 0.25  # of its fair share: a mode that gets less is lost
EVAL_OBSERVATIONS = 128
EVAL_SAMPLES = 64
WARM_UP = 0.1  # fraction of the training
MAX_GRAD_NORM = 2.0


@dataclass
class ToyConfig:
    """One training on the toy."""

    task: dict[str, Any]  # sizes that the policy's configuration refers to
    policy: dict[str, Any]  # see drift_policy.policy_config
    name: str  # folder of the run
    num_modes: int = 2  # K: demonstrated chunks of an observation
    demonstration_noise: float = 0.02  # deviation of a demonstration from its mode
    num_steps: int = 3000  # optimiser steps
    batch_size: int = 64  # observations a step, each with one demonstration
    learning_rate: float = 1e-3  # its peak
    seed: int = 0  # of weights, data and noise
    output: str = "runs"  # folder of all runs

    def __post_init__(self) -> None:
        require(self.num_modes >= 2, f"num_modes must be at least 2, but is {self.num_modes}.")
        require(self.demonstration_noise >= 0, f"demonstration_noise is {self.demonstration_noise}: negative.")
        require(self.num_steps >= 1 and self.batch_size >= 1, "num_steps and batch_size must be at least 1.")
        require(self.learning_rate > 0, f"learning_rate must be positive, but is {self.learning_rate}.")


def recorded_settings(config: ToyConfig) -> dict[str, Any]:
    """Return what decides a training: all but where it is written to."""
    return {name: value for name, value in asdict(config).items() if name not in ("name", "output")}


@dataclass(frozen=True)
class ModeMetrics:
    """What the samples of many observations do."""

    on_mode: float  # share of the samples that are on a mode
    all_modes: float  # share of the observations whose samples keep every mode
    near_mean: float  # share of the samples that are nearer to the mean of the modes than to any mode
    error: float  # root mean square distance to the nearest mode of the samples on one, in units of an action
    spread: float  # deviation of an observation's samples over that of the modes


def modes(obs: Tensor, number: int, horizon: int) -> Tensor:
    """Return the modes [B, K, Tp, Da] of observations [B, 1, OBS_DIM]: corners of a polygon that turns with them."""
    frequencies = torch.linspace(-1, 1, OBS_DIM * horizon * DA).reshape(OBS_DIM, horizon * DA)
    phase = obs[:, 0] @ frequencies + torch.arange(horizon * DA)
    axes = torch.stack([torch.sin(phase), torch.cos(phase)], dim=1) * MODE_LENGTH  # [B, 2, Tp * Da]
    angle = torch.arange(number) * (2 * torch.pi / number)
    corners = torch.stack([angle.cos(), angle.sin()], dim=1)  # [K, 2]
    return (corners @ axes).unflatten(2, (horizon, DA))


def draw_observations(number: int, rng: torch.Generator) -> Tensor:
    """Return observations [number, 1, OBS_DIM], uniform in [-1, 1]."""
    return 2 * torch.rand(number, 1, OBS_DIM, generator=rng) - 1


def make_policy(config: ToyConfig) -> Policy:
    """Build the configured policy for the toy's sizes; its normaliser changes nothing."""
    values = {**config.policy, "action_dim": DA, "observations": {"obs": {"shape": [OBS_DIM], "kind": "state"}}}
    policy = build_policy(policy_config_from_mapping(values))
    unit = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    policy.set_normalizer(Normalizer.fit({"obs": unit, "action": unit}))
    return policy


def train(policy: Policy, config: ToyConfig, rng: torch.Generator, console: Console) -> float:
    """Train with a fresh demonstration of one mode for every observation; return the seconds it took."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.num_steps, pct_start=WARM_UP, cycle_momentum=False
    )
    started = time.perf_counter()
    for step in track(range(config.num_steps), "training", console=console, transient=True):
        obs = draw_observations(config.batch_size, rng)
        choice = torch.randint(config.num_modes, (config.batch_size,), generator=rng)
        action = modes(obs, config.num_modes, policy.horizon)[torch.arange(config.batch_size), choice]
        action = action + config.demonstration_noise * torch.randn(action.shape, generator=rng)
        draws = policy.draw(config.batch_size, rng, step=step)
        loss, _ = policy.compute_loss({"obs": obs, "action": action}, draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - started


def measure(samples: Tensor, targets: Tensor) -> ModeMetrics:
    """Compare samples [B, G, Tp, Da] with the modes [B, K, Tp, Da] of their observations."""
    flat, corners = samples.flatten(2), targets.flatten(2)
    distance = torch.cdist(flat, corners)  # [B, G, K]
    nearest, index = distance.min(dim=2)
    near = nearest < ON_MODE * (corners[:, 1:2] - corners[:, :1]).norm(dim=2)
    hits = torch.nn.functional.one_hot(index, corners.shape[1]) * near.unsqueeze(2)
    kept = hits.float().mean(dim=1) >= KEPT / corners.shape[1]
    to_mean = (flat - corners.mean(dim=1, keepdim=True)).norm(dim=2)
    error = (nearest[near].square().mean() / corners.shape[2]).sqrt() if near.any() else torch.tensor(torch.nan)
    deviation = flat.std(dim=1, unbiased=False).mean() / corners.std(dim=1, unbiased=False).mean()
    return ModeMetrics(
        on_mode=float(near.float().mean()),
        all_modes=float(kept.all(dim=1).float().mean()),
        near_mean=float((to_mean < nearest).float().mean()),
        error=float(error),
        spread=float(deviation),
    )


def draw_samples(samples: Tensor, targets: Tensor, path: Path) -> None:
    """Draw the samples of six observations in the plane of their modes."""
    figure, grid = plt.subplots(1, 6, figsize=(15, 2.9), layout="constrained", sharex=True, sharey=True)
    for axes, chunk, corner in zip(grid, samples.flatten(2), targets.flatten(2), strict=False):
        _, _, plane = torch.linalg.svd(corner - corner.mean(dim=0), full_matrices=False)
        if len(corner) == 2:  # two modes span a line: add the direction of largest deviation
            rest = chunk - chunk @ plane[:1].T @ plane[:1]
            plane = torch.cat([plane[:1], torch.linalg.svd(rest - rest.mean(dim=0), full_matrices=False)[2][:1]])
        for points, style in ((chunk, {"s": 8, "color": "tab:red"}), (corner, {"s": 90, "color": "k", "marker": "x"})):
            axes.scatter(*(points @ plane[:2].T).T, **style)
        axes.set_aspect("equal")
    figure.suptitle("Samples (red) and modes (crosses) of six observations, in the plane of the modes")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run(config: ToyConfig, overrides: list[str], console: Console) -> dict[str, Any]:
    """Train, measure, write manifest and picture; return the manifest."""
    facts = describe_run("-m benchmarks.multimodal_toy", overrides)  # of the start
    torch.manual_seed(config.seed)
    rng = torch.Generator().manual_seed(config.seed)
    policy = make_policy(config)
    seconds = train(policy, config, rng, console)
    obs = draw_observations(EVAL_OBSERVATIONS, rng)
    targets = modes(obs, config.num_modes, policy.horizon)
    samples = policy.eval().sample_actions({"obs": obs}, EVAL_SAMPLES, generator=rng)
    metrics = measure(samples, targets)
    manifest = {
        **facts,
        "task": "multimodal_toy",
        "seed": config.seed,
        "training": {"steps": config.num_steps, "seconds": seconds},
        "policy": policy.config.to_mapping(),
        "num_modes": config.num_modes,
        "demonstration_noise": config.demonstration_noise,
        "config": recorded_settings(config),
        "evaluation": {
            "observations": EVAL_OBSERVATIONS,
            "samples": EVAL_SAMPLES,
            "network_evaluations": policy.num_evaluations,
            "noise_scale": policy.config.noise_scale,
            **vars(metrics),
        },
    }
    folder = Path(config.output) / "multimodal_toy" / config.name
    write_json(folder / "manifest.json", manifest)
    draw_samples(samples, targets, folder / "samples.png")
    for name, value in vars(metrics).items():
        console.print(f"{name:10} {value:.3f}")
    console.print(f"written    {folder}: manifest.json, samples.png")
    return manifest


@hydra.main(config_path="../configs", config_name="multimodal_toy", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and train."""
    with command_line() as console:
        run(parse_config(ToyConfig, resolved(cfg)), HydraConfig.get().overrides.task, console)


if __name__ == "__main__":
    with command_line(), composition_errors(ToyConfig, complete=["task", "policy"]):
        main()
