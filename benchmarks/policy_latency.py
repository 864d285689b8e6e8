"""Latency of a decision: one-step drift against iterative heads with the same network, batch 1.

    python -m benchmarks.policy_latency [--network mlp] [--threads 1] [--output results/policy_latency_mlp.json]

All methods are timed in turns within one run, so that the machine treats them alike; the bare forward pass of the
network is the floor. Weights are random: they do not change the amount of work.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import measure_in_turns
from drift_policy.data.normalizer import Normalizer
from drift_policy.manifest import describe_run, write_json
from drift_policy.networks import NETWORKS
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import policy_config_from_mapping

OBS_SIZE, ACTION_DIM = 20, 2  # Push-T from keypoints
FLOOR, DRIFT = "bare forward", "drift, 1 evaluation"
HEADS: dict[str, dict[str, Any]] = {
    DRIFT: {"name": "drift"},
    "DDIM, 16 evaluations": {"name": "diffusion", "sampler": "ddim", "num_inference_steps": 16},
    "DDPM, 100 evaluations": {"name": "diffusion", "sampler": "ddpm", "num_inference_steps": 100},
}


def make_policy(head: dict[str, Any], network: str) -> Policy:
    """Return a policy of Push-T's sizes with random weights and a fitted normaliser."""
    config = policy_config_from_mapping(
        {
            "action_dim": ACTION_DIM,
            "observations": {"obs": {"kind": "state", "shape": [OBS_SIZE]}},
            "head": head,
            "network": {"name": network},
        }
    )
    policy = build_policy(config)
    ranges = {
        key: np.array([[0.0] * size, [512.0] * size]) for key, size in (("obs", OBS_SIZE), ("action", ACTION_DIM))
    }
    policy.set_normalizer(Normalizer.fit({key: value.astype(np.float32) for key, value in ranges.items()}))
    return policy.eval()


def make_calls(network: str) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    observation = {"obs": np.random.default_rng(0).uniform(0, 512, (1, 2, OBS_SIZE)).astype(np.float32)}
    policies = {label: make_policy(head, network) for label, head in HEADS.items()}
    bare = policies[DRIFT].head.network
    noise, condition = torch.randn(1, 1, 16, ACTION_DIM), torch.randn(1, 2 * OBS_SIZE)

    def forward() -> Any:
        with torch.inference_mode():
            return bare(sample=noise, condition=condition)

    calls: dict[str, Callable[[], Any]] = {FLOOR: forward}
    calls |= {label: partial(policy.predict_action, observation) for label, policy in policies.items()}
    return calls


def measure(calls: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Time every call in turns, [ms]; see `measure_in_turns`, of which these are the steady calls."""
    return {label: times.steady for label, times in measure_in_turns(calls, rounds, repeats).items()}


def summarize(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return p50, p99 and the ratios of medians to the floor and to drift."""
    medians = {label: float(np.median(values)) for label, values in times.items()}
    return {
        label: {
            "p50_ms": medians[label],
            "p99_ms": float(np.percentile(values, 99)),
            "times_floor": medians[label] / medians[FLOOR],
            "times_drift": medians[label] / medians[DRIFT],
        }
        for label, values in times.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="mlp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    summary = summarize(measure(make_calls(arguments.network), arguments.rounds, arguments.repeats))
    table = Table("method", "p50 [ms]", "p99 [ms]", "x floor", "x drift", title=f"batch 1, network {arguments.network}")
    for label, row in summary.items():
        table.add_row(label, *(f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "times_floor", "times_drift")))
    Console().print(table)
    if arguments.output:
        facts = describe_run("-m benchmarks.policy_latency", sys.argv[1:])
        write_json(arguments.output, {**facts, "network": arguments.network, "methods": summary})


if __name__ == "__main__":
    main()
