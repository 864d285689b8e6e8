"""Latency of LeRobot's DiffusionPolicy on a CPU beside ours, batch 1, observation on the host, state observations.

    python -m benchmarks.lerobot_latency [--threads 1 2] [--cases ...] [--output results/lerobot_latency.json]

Runs in an environment with LeRobot, which integrations/lerobot_policy_drift/test.sh makes. The JSON has the form of
that of benchmarks.runtime_latency. What is timed is a whole decision, in turns within one run:

eager                  `predict_action` of pretrained/pusht, as it is loaded
LeRobot, bare forward  one evaluation of the network of LeRobot's defaults, random weights: the floor of its decisions
LeRobot, DDIM, 10      its default policy with noise_scheduler_type=DDIM, num_inference_steps=10
LeRobot, DDPM, 100     its default policy

LeRobot's decisions go through its pre-processor, `select_action` with an empty queue, and its post-processor, because
ours normalise too. It observes its own Push-T: the agent's position (2) and the environment's state (16).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.policy_latency import measure
from drift_policy.manifest import describe_run, write_json
from drift_policy.serialization import load_policy

EAGER, FLOOR = "eager", "LeRobot, bare forward"
SAMPLERS: dict[str, dict[str, Any]] = {
    "LeRobot, DDIM, 10 evaluations": {"noise_scheduler_type": "DDIM", "num_inference_steps": 10},
    "LeRobot, DDPM, 100 evaluations": {},
}
CASES = (EAGER, FLOOR, *SAMPLERS)
CHECKPOINT = "pretrained/pusht"
STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
SIZES = {STATE: 2, ENVIRONMENT: 16, ACTION: 2}

Call = Callable[[], Any]


def eager() -> Call:
    """Return a decision of our state policy."""
    policy = load_policy(CHECKPOINT)
    (key, spec), *_ = policy.config.observations.items()
    drawn = np.random.default_rng(0).uniform(0, 512, (1, policy.n_obs_steps, *spec.shape)).astype(np.float32)
    return partial(policy.predict_action, {key: drawn})


def lerobot_calls(wanted: list[str]) -> dict[str, Call]:
    """Return the decisions of LeRobot's policy, and one evaluation of its network; all share its weights.

    Raises:
        SystemExit: LeRobot is not installed.
    """
    try:
        # Not in the project's environment: it wants other versions of PyTorch and diffusers.
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
        from lerobot.policies.factory import make_pre_post_processors
    except ImportError as error:
        raise SystemExit(
            f"{error}: run it with the Python that integrations/lerobot_policy_drift/test.sh makes."
        ) from error
    kinds = {STATE: FeatureType.STATE, ENVIRONMENT: FeatureType.ENV, ACTION: FeatureType.ACTION}
    features = {name: PolicyFeature(kinds[name], (size,)) for name, size in SIZES.items()}
    stats = {name: {"min": torch.zeros(size), "max": torch.full((size,), 512.0)} for name, size in SIZES.items()}
    observation = {name: 512 * torch.rand(SIZES[name]) for name in (STATE, ENVIRONMENT)}
    calls: dict[str, Call] = {}
    network: Any = None
    for name, settings in SAMPLERS.items():
        config = DiffusionConfig(
            device="cpu",
            input_features={key: features[key] for key in (STATE, ENVIRONMENT)},
            output_features={ACTION: features[ACTION]},
            **settings,
        )
        policy = DiffusionPolicy(config).eval()
        network = policy.diffusion.unet if network is None else network
        policy.diffusion.unet = network
        before, after = make_pre_post_processors(config, dataset_stats=stats)

        def decide(policy: Any = policy, before: Any = before, after: Any = after) -> Any:
            policy.reset()
            return after(policy.select_action(before(dict(observation))))

        calls[name] = decide
    sample, step = torch.randn(1, config.horizon, SIZES[ACTION]), torch.zeros(1, dtype=torch.long)
    condition = torch.randn(1, config.n_obs_steps * (SIZES[STATE] + SIZES[ENVIRONMENT]))

    def forward() -> Any:
        with torch.no_grad():
            return network(sample, step, global_cond=condition)

    calls[FLOOR] = forward
    return {name: calls[name] for name in CASES if name in calls and name in wanted}


def first_call(call: Call) -> float:
    """Return the milliseconds of a call, which warms it up."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def summarize(first: dict[str, float], times: dict[str, list[float]]) -> dict[str, dict[str, float | None]]:
    """Return p50, p99, their ratio, the first call, and the ratio of medians to eager drift if that was timed."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    tails = {name: float(np.percentile(values, 99)) for name, values in times.items()}
    return {
        name: {
            "p50_ms": medians[name],
            "p99_ms": tails[name],
            "p99_over_p50": tails[name] / medians[name],
            "first_call_ms": first[name],
            "times_eager": medians[name] / medians[EAGER] if EAGER in medians else None,
        }
        for name in times
    }


def print_results(rows: dict[str, dict[str, float | None]], threads: int) -> None:
    """Print one row a case."""
    table = Table("case", "p50 [ms]", "p99 [ms]", "x eager", title=f"state, batch 1, {threads} thread(s)")
    for name, row in rows.items():
        values = (row[column] for column in ("p50_ms", "p99_ms", "times_eager"))
        table.add_row(name, *("" if value is None else f"{value:.2f}" for value in values))
    Console().print(table)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="timed calls of each case in a round")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()

    load = os.getloadavg()[0]  # well above zero: other programs were running, and the times are too long
    calls = lerobot_calls(arguments.cases)
    if EAGER in arguments.cases:
        calls = {EAGER: eager(), **calls}
    by_threads: dict[str, Any] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        first = {name: first_call(call) for name, call in calls.items()}
        rows = summarize(first, measure(calls, arguments.rounds, arguments.repeats))
        print_results(rows, threads)
        by_threads[str(threads)] = {"state": rows}
    if arguments.output:
        from importlib.metadata import version

        facts = describe_run("-m benchmarks.lerobot_latency", sys.argv[1:])
        facts["versions"]["lerobot"] = version("lerobot")
        settings = {"rounds": arguments.rounds, "repeats": arguments.repeats, "load_average_before": load}
        write_json(arguments.output, {**facts, **settings, "threads": by_threads})


if __name__ == "__main__":
    main()
