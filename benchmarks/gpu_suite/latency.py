"""Latency of a decision: one-step drift against DDPM and DDIM with the same network, batch 1.

    python -m benchmarks.gpu_suite.latency --output OUT

The observation is on the host, and the action is brought back to it. All methods of a policy are timed in turns within
one run, so that the machine treats them alike; on a GPU also as CUDA graphs. Weights are random: they do not change
the amount of work. Writes OUT/latency.json; what does not fit into the time budget is named there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_suite.command import (
    Budget,
    add_common_arguments,
    open_device,
    positive_integer,
    run_program,
    synchronize,
)
from benchmarks.gpu_suite.policies import (
    HEADS,
    IMAGE_UNET,
    STATE_TRANSFORMER,
    STATE_UNET,
    Sizes,
    make_policy,
    num_parameters,
    policy_config,
)
from benchmarks.gpu_suite.prepared import Prepared, prepared_path, read_prepared
from drift_policy.cuda_graph import PRECISIONS, GraphedPolicy
from drift_policy.encoders import ObservationSpec
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy import Observation, Policy

STATE, CAMERA, TWO_CAMERAS = "state_unet", "image_unet", "image_unet_two_cameras"
SUBJECTS: dict[str, tuple[str, Sizes]] = {
    STATE: ("state", STATE_UNET),
    "state_transformer": ("state", STATE_TRANSFORMER),
    CAMERA: ("image", IMAGE_UNET),
    TWO_CAMERAS: ("image", IMAGE_UNET),
}
TINY_SIZES = {
    "unet": Sizes(down_dims=[16, 32], step_embedding=8, backbone="small_cnn"),
    "transformer": Sizes(network="transformer", layers=1, width=8),
}
GOALS_MS = {STATE: 1.0, "state_transformer": 1.0, CAMERA: 3.0}  # p50 of the best drift decision
DRIFT = "drift"
_SEED = 0
_LONGEST_ROUND = 0.1  # of the time of a subject: so long are the repeated calls of all methods in a round, about
Decide = Callable[[], object]


def observation_specs(prepared: Prepared, subject: str) -> dict[str, ObservationSpec]:
    """Return what a subject observes: what was prepared, or every camera twice."""
    if subject != TWO_CAMERAS:
        return prepared.specs
    second = {f"second_{key}": replace(spec) for key, spec in prepared.specs.items() if spec.kind == "image"}
    return prepared.specs | second


def random_observation(specs: dict[str, ObservationSpec], n_obs_steps: int) -> dict[str, NDArray[Any]]:
    """Return one observation on the host, as a robot would give it: {key: [1, To, ...]}."""
    rng = np.random.default_rng(0)
    return {
        key: rng.integers(256, size=(1, n_obs_steps, *spec.shape), dtype=np.uint8)
        if spec.kind == "image"
        else rng.uniform(0, 512, (1, n_obs_steps, *spec.shape)).astype(np.float32)
        for key, spec in specs.items()
    }


def decide_eagerly(policy: Policy, observation: Observation, precision: str) -> None:
    """Make one decision, kernel by kernel."""
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        policy.predict_action(observation)["action"].cpu()


def decide_by_graph(graph: GraphedPolicy, observation: Observation) -> None:
    """Make one decision by a captured graph."""
    graph.predict_action(observation)["action"].cpu()


def make_decisions(
    prepared: Prepared, subject: str, sizes: Sizes, device: torch.device, precisions: Sequence[str]
) -> tuple[dict[str, Decide], dict[str, int]]:
    """Return what is timed, by `head/mode/precision`, and the parameters of each head's policy."""
    specs = observation_specs(prepared, subject)
    observation = random_observation(specs, prepared.n_obs_steps)
    decisions: dict[str, Decide] = {}
    parameters: dict[str, int] = {}
    for head in HEADS:
        policy = make_policy(prepared, policy_config(prepared, head, sizes, specs), _SEED, device).eval()
        parameters[head] = num_parameters(policy)
        for precision in precisions:
            decisions[f"{head}/eager/{precision}"] = partial(decide_eagerly, policy, observation, precision)
            if device.type == "cuda":
                graph = GraphedPolicy(policy, precision=precision)
                decisions[f"{head}/graph/{precision}"] = partial(decide_by_graph, graph, observation)
    return decisions, parameters


def measure(decisions: dict[str, Decide], device: torch.device, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Time every decision in turns, as many whole rounds as fit into the seconds, at least one; [ms].

    A round repeats each method up to `repeats` times, fewer if it is slow; the first call of each round only warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in decisions}
    began, longest_round = time.perf_counter(), 0.0
    longest_block = _LONGEST_ROUND * seconds / len(decisions)
    while longest_round == 0.0 or time.perf_counter() - began + longest_round < seconds:
        round_began = time.perf_counter()
        for name, decide in decisions.items():
            decide()
            synchronize(device)
            block_began = time.perf_counter()
            for _ in range(repeats):
                started = time.perf_counter()
                decide()
                ended = time.perf_counter()
                times[name].append((ended - started) * 1000)
                if ended - block_began > longest_block:
                    break
        longest_round = max(longest_round, time.perf_counter() - round_began)
    return times


def summarize(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return p50, p99 and the number of decisions of each method, and how many times drift's p50 in the same mode."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        name: {
            "p50_ms": medians[name],
            "p99_ms": float(np.percentile(values, 99)),
            "decisions": len(values),
            "times_drift": medians[name] / medians["/".join([DRIFT, *name.split("/")[1:]])],
        }
        for name, values in times.items()
    }


def _print(subject: str, rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        print(
            f"{subject} {name}: p50 {row['p50_ms']:.3f} ms, p99 {row['p99_ms']:.3f} ms, "
            f"{row['times_drift']:.1f} x drift ({row['decisions']} decisions)",
            flush=True,
        )
    if subject in GOALS_MS:
        best = min(row["p50_ms"] for name, row in rows.items() if name.startswith(f"{DRIFT}/"))
        print(f"{subject}: best p50 of drift {best:.3f} ms, goal below {GOALS_MS[subject]:g} ms", flush=True)


def measure_all(given: argparse.Namespace, budget: Budget) -> None:
    """Measure one subject after the other, each in an equal share of the time that is left."""
    device = open_device(given.device)
    facts = {
        **describe_run("-m benchmarks.gpu_suite.latency", given.arguments),
        "device": device.type,
        "graphs": "captured" if device.type == "cuda" else "not measured: a CUDA graph needs an NVIDIA GPU",
        "goals_p50_ms": GOALS_MS,
    }
    subjects: dict[str, Any] = {}
    path: Path = given.output / "latency.json"
    for position, subject in enumerate(given.subjects):
        write_json(path, {**facts, "subjects": subjects, "not_measured": list(given.subjects[position:])})
        share = Budget(budget.left() / (len(given.subjects) - position))
        if share.seconds <= 0:
            return
        task, sizes = SUBJECTS[subject]
        prepared = read_prepared(prepared_path(given.prepared, task))
        sizes = TINY_SIZES[sizes.network] if given.tiny else sizes
        decisions, parameters = make_decisions(prepared, subject, sizes, device, given.precisions)
        rows = summarize(measure(decisions, device, share.left(), given.repeats))
        subjects[subject] = {"parameters": parameters, "sizes": sizes.__dict__, "methods": rows}
        _print(subject, rows)
    write_json(path, {**facts, "subjects": subjects, "not_measured": []})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--subjects", nargs="+", choices=tuple(SUBJECTS), default=tuple(SUBJECTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--repeats", type=positive_integer, default=200, help="decisions of a method in a row at most")
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
