"""Latency of a decision on a CPU, batch 1, observation on the host: PyTorch, compiled, ONNX, and iterative heads.

    python -m benchmarks.runtime_latency [--threads 1 2] [--only state] [--output results/runtime_latency.json]

What is timed is `predict_action` on a whole observation, all To = 2 steps of it: checks, noise, normalisation, encoder,
network. For every observation:

bare forward  encoder and network in PyTorch, for all candidates of a decision, without checks, noise and choice: the
              floor of eager PyTorch
eager         the policy as it is loaded
compiled      with encoder.compile() and head.network.compile(); the first call compiles
onnx          exported, in onnxruntime
DDIM, DDPM    a diffusion head on the same network and encoder, eager, one chunk a decision
..., one candidate  of eager and onnx on "state". All other cases draw the policy's number.
..., robot loop  of eager and onnx: `RecedingHorizon.step` with a decision in every step, the time from the newest
              observation to its action, with all that the loop does (copy, history, decision, guard, queue). Policies
              with cameras encode the newest step in it; the step before was encoded by the decision before.
..., step ahead  of those with cameras: `encode_step`. It is not part of "robot loop": a loop that executes several
              actions of a chunk does it in the control step before each decision, after that step's action is chosen.

Times are of calls one after the other. "after others" is the median of the first call after another case has run, when
code and weights are no longer in the processor's caches, as after a robot's own work between two decisions.

"state" is pretrained/pusht. The image policies have random weights, which do not change the amount of work:
"two cameras" reads two RGB images of 84 x 84 pixels a step through ResNet-18 (weights of its own for each camera),
"pusht image" one of 96 x 96, cropped to 84 x 84, through the small CNN. All cases of one observation are timed in
turns, so that the machine treats them alike. The goals are for one thread. That of 100 times DDPM is for "state" alone:
every head encodes an observation once, and with images that is most of the time.
"""

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Times, measure_in_turns
from drift_policy.data.normalizer import Normalizer
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.runtime.export import export_policy
from drift_policy.runtime.observations import Arrays
from drift_policy.runtime.onnx_policy import OnnxPolicy
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.spec import PolicySpec, describe_policy
from drift_policy.runtime.step_features import encodes_steps
from drift_policy.runtime.warm_up import warm_up
from drift_policy.serialization import load_policy

FLOOR, EAGER, COMPILED, ONNX = "bare forward", "eager", "compiled", "onnx"
LOOP, AHEAD = "robot loop", "step ahead"  # after the name of a case
ONNX_LOOP = f"{ONNX}, {LOOP}"
SINGLE = "one candidate"  # after the name of a case
DDPM = "DDPM, 100 evaluations"
ITERATIVE: dict[str, dict[str, Any]] = {
    "DDIM, 10 evaluations": {"sampler": "ddim", "num_inference_steps": 10},
    "DDIM, 16 evaluations": {"sampler": "ddim", "num_inference_steps": 16},
    DDPM: {"sampler": "ddpm", "num_inference_steps": 100},
}
CHECKPOINT = "pretrained/pusht"
CAMERA = {"kind": "image", "shape": [3, 84, 84]}
IMAGE_POLICIES: dict[str, dict[str, Any]] = {
    "two cameras": {
        "action_dim": 7,
        "observations": {"front": CAMERA, "wrist": CAMERA, "state": {"kind": "state", "shape": [9]}},
        "image_backbone": {"name": "resnet18"},
    },
    "pusht image": {
        "action_dim": 2,
        "observations": {
            "image": {"kind": "image", "shape": [3, 96, 96], "crop": [84, 84]},
            "agent_pos": {"kind": "state", "shape": [2]},
        },
        "image_backbone": {"name": "small_cnn"},
    },
}
OBSERVATIONS = ("state", *IMAGE_POLICIES)
# What the project wants on one thread: observation, case, the larger number that is compared, its limit.
GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("state", ONNX, "p50_ms", 1.0),
    ("state", EAGER, "p50_ms", 3.0),
    ("two cameras", ONNX_LOOP, "p50_ms", 25.0),
    ("state", ONNX, "p99_over_p50", 1.5),
    ("state", EAGER, "p99_over_p50", 1.5),
    ("two cameras", ONNX_LOOP, "p99_over_p50", 1.5),
)
LEAST_SPEED_UP = 100.0  # of eager drift over DDPM with 100 evaluations, on "state"

Case = tuple[Callable[[], Any], float | None]  # a decision, and the milliseconds of the first one


def make_policy(observation: str) -> Policy:
    """Return the drift policy of an observation, in evaluation mode."""
    if observation == "state":
        return load_policy(CHECKPOINT)
    torch.manual_seed(0)
    parts = {"head": {"name": "drift"}, "network": {"name": "mlp"}}
    policy = build_policy(policy_config_from_mapping(IMAGE_POLICIES[observation] | parts))
    ranges = {key: np.array([[-1.0] * size, [1.0] * size], np.float32) for key, size in policy.normalizer.sizes.items()}
    policy.set_normalizer(Normalizer.fit(ranges))
    policy.encoder.prefer_single_images()  # as load_policy does
    return policy.eval()


def with_diffusion(drift: Policy, settings: dict[str, Any]) -> Policy:
    """Return a diffusion policy with the encoder and the kind of network of `drift`, which draws one chunk."""
    head = {"name": "diffusion", "num_train_steps": 100, **settings}
    values = drift.config.to_mapping() | {"head": head, "num_candidates": 1, "mirrored": False}
    policy = build_policy(policy_config_from_mapping(values))
    policy.normalizer, policy.encoder = drift.normalizer, drift.encoder
    return policy.eval()


def random_observation(spec: PolicySpec) -> Arrays:
    """Return one observation {key: [1, To, ...]} as a host has it: bytes and float32."""
    rng = np.random.default_rng(0)
    drawn: Arrays = {}
    for key, value in spec.observations.items():
        shape = (1, spec.n_obs_steps, *value.shape)
        is_image = value.kind == "image"
        drawn[key] = rng.integers(256, size=shape, dtype=np.uint8) if is_image else rng.random(shape, np.float32)
    return drawn


def bare_forward(policy: Policy, observation: Arrays) -> Callable[[], Any]:
    """Return encoder and network on tensors that are ready, for the policy's candidates."""
    inputs = policy.normalize_observation({key: torch.as_tensor(value) for key, value in observation.items()})
    noise = torch.randn(1, policy.config.num_candidates, policy.horizon, policy.action_dim)

    def forward() -> Any:
        with torch.inference_mode():
            return policy.head.sample(policy.encoder(inputs), noise)

    return forward


def loop_cases(name: str, policy: Any, example: Arrays) -> dict[str, Case]:
    """Return a control step that decides, and what a policy with cameras can do before it; see above.

    Args:
        name: of the policy.
        policy: warmed up.
        example: one observation {key: [1, To, ...]}.
    """
    newest = {key: value[:, -1:] for key, value in example.items()}
    loop = RecedingHorizon(policy, 10.0, replan_every=1, compensate_latency=False)
    cases: dict[str, Case] = {
        f"{name}, {LOOP}": (partial(loop.step, {key: value[0, 0] for key, value in newest.items()}), None)
    }
    if encodes_steps(policy):
        cases[f"{name}, {AHEAD}"] = (partial(policy.encode_step, newest), None)
    return cases


def single_candidate_cases(drift: Policy, example: Arrays, threads: int, path: Path) -> dict[str, Case]:
    """Return decisions that draw one chunk, eager and exported to `path`; arguments as in `make_cases`."""
    if not path.exists():
        export_policy(drift, path, num_candidates=1)
    exported = OnnxPolicy(path, num_threads=threads, seed=0)
    return {
        f"{EAGER}, {SINGLE}": (partial(drift.predict_action, example, num_candidates=1), None),
        f"{ONNX}, {SINGLE}": (partial(exported.predict_action, example), warm_up(exported).first_ms),
    }


def make_cases(observation: str, threads: int, folder: Path, compiled: bool) -> dict[str, Case]:
    """Return what is timed, by name, warmed up.

    Args:
        observation: one of OBSERVATIONS.
        threads: of PyTorch, which has them set already, and of onnxruntime.
        folder: for the exported file.
        compiled: whether to compile, which takes minutes.
    """
    drift = make_policy(observation)
    example = random_observation(describe_policy(drift))
    path = folder / f"{observation.replace(' ', '_')}.onnx"
    if not path.exists():
        export_policy(drift, path)
    policies: dict[str, Any] = {EAGER: drift, ONNX: OnnxPolicy(path, num_threads=threads, seed=0)}
    if compiled:
        torch._dynamo.reset()  # generated code has the number of threads in it
        policies[COMPILED] = copy.deepcopy(drift)
        policies[COMPILED].encoder.compile()
        policies[COMPILED].head.network.compile()
    policies |= {name: with_diffusion(drift, settings) for name, settings in ITERATIVE.items()}
    cases: dict[str, Case] = {FLOOR: (bare_forward(drift, example), None)}
    for name, policy in policies.items():
        cases[name] = (partial(policy.predict_action, example), warm_up(policy).first_ms)
        if name in (EAGER, ONNX):
            cases |= loop_cases(name, policy, example)
    if observation == "state":
        cases |= single_candidate_cases(drift, example, threads, folder / "single.onnx")
    return cases


def summarize(cases: dict[str, Case], times: dict[str, Times]) -> dict[str, dict[str, float | None]]:
    """Return p50, p99, their ratio, first calls, and the ratios of medians to the floor, eager drift and ONNX."""
    medians = {name: float(np.median(values.steady)) for name, values in times.items()}
    tails = {name: float(np.percentile(values.steady, 99)) for name, values in times.items()}
    return {
        name: {
            "p50_ms": medians[name],
            "p99_ms": tails[name],
            "p99_over_p50": tails[name] / medians[name],
            "calls": len(times[name].steady),
            "after_others_ms": float(np.median(times[name].first)),
            "first_call_ms": first,
            "times_floor": medians[name] / medians[FLOOR],
            "times_eager": medians[name] / medians[EAGER],
            "times_onnx": medians[name] / medians[ONNX],
        }
        for name, (_, first) in cases.items()
    }


def check_goals(results: dict[str, dict[str, dict[str, float | None]]]) -> list[dict[str, Any]]:
    """Return what was wanted on one thread and what was measured.

    Args:
        results: observation -> case -> numbers.
    """
    checks = []
    for observation, case, number, limit in GOALS:
        if observation in results:
            value = results[observation][case][number]
            met = value is not None and value < limit
            checks.append({"goal": f"{observation}, {case}: {number} < {limit:g}", "measured": value, "is_met": met})
    if "state" in results:
        value = results["state"][DDPM]["times_eager"]
        met = value is not None and value >= LEAST_SPEED_UP
        goal = f"state: {DDPM}, at least {LEAST_SPEED_UP:g} times eager"
        checks.append({"goal": goal, "measured": value, "is_met": met})
    return checks


def print_results(results: dict[str, dict[str, dict[str, float | None]]], threads: int, console: Console) -> None:
    """Print one row a case."""
    columns = ("p50_ms", "p99_ms", "p99_over_p50", "after_others_ms", "times_floor", "times_eager")
    heads = ("p50 [ms]", "p99 [ms]", "p99 / p50", "after others [ms]", "x floor", "x eager")
    table = Table("observation", "case", *heads, title=f"batch 1, {threads} thread(s)")
    for observation, cases in results.items():
        for name, row in cases.items():
            table.add_row(observation, name, *(f"{row[column]:.2f}" for column in columns))
    console.print(table)


def positive(text: str) -> int:
    """Read a positive number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=OBSERVATIONS, default=OBSERVATIONS, help="observations to time")
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--repeats", type=positive, default=20, help="timed calls of each case in a round, at least")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()

    console = Console()
    load = os.getloadavg()[0]  # well above zero: other programs were running, and the times are too long
    by_threads: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            results = {}
            for observation in arguments.only:
                cases = make_cases(observation, threads, Path(folder), not arguments.no_compile)
                calls = {name: call for name, (call, _) in cases.items()}
                results[observation] = summarize(cases, measure_in_turns(calls, arguments.rounds, arguments.repeats))
            print_results(results, threads, console)
            by_threads[str(threads)] = results
            if threads == 1:
                goals = check_goals(results)
    for goal in goals:
        console.print(f"{'met' if goal['is_met'] else 'MISSED'}: {goal['goal']} (measured {goal['measured']:.2f})")
    if arguments.output:
        facts = describe_run("-m benchmarks.runtime_latency", sys.argv[1:])
        settings = {"rounds": arguments.rounds, "repeats": arguments.repeats, "load_average_before": load}
        write_json(arguments.output, {**facts, **settings, "threads": by_threads, "goals_on_one_thread": goals})


if __name__ == "__main__":
    main()
