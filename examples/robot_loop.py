"""A robot loop at a fixed rate: Push-T in real time, which does not wait for the policy; drift beside diffusion.

    python -m examples.robot_loop [--hz 10 50 200] [--seconds 10] [--output results/robot_loop.json]

Every control step is one step of the simulator, so the world runs at `hz` steps a second. A control step whose
deadline passes while the policy decides is missed: the world goes on with the last action. Each policy runs twice:

blocking      the loop waits for a decision; its chunk is executed from the first action
asynchronous  a thread decides while the old chunk goes on; actions whose steps have passed are skipped

The picture shows how late control steps began. Diffusion has the drift policy's network; without --diffusion its
weights are random, which tells its times but makes its scores meaningless.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from drift_policy.cli import command_line
from drift_policy.data.normalizer import Normalizer
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.warm_up import warm_up
from drift_policy.serialization import load_policy

FIRST_SEED = 100000  # of the benchmark's test episodes
SPIN = 0.0005  # seconds before a deadline in which the loop does not trust the operating system to wake it in time
DIFFUSION = {"name": "diffusion", "sampler": "ddpm", "num_train_steps": 100, "num_inference_steps": 100}
MODES = ("blocking", "asynchronous")


@dataclass
class Recording:
    """What happened in the control steps of one case."""

    lateness: list[float] = field(default_factory=list)  # of the beginning of a control step [s]
    num_missed: int = 0  # control steps that passed while the loop was busy
    num_held: int = 0  # control steps for which no chunk had an action
    latencies: list[float] = field(default_factory=list)  # of decisions, the first of each episode left out [s]
    num_late_chunks: int = 0  # decisions that came too late to be executed
    scores: list[float] = field(default_factory=list)  # of the episodes, the last one as far as it went


class World:
    """Push-T, which holds the last action while nobody gives a new one.

    Args:
        position: first action to hold.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        self._env = env
        self.observation, info = env.reset(seed=seed)
        self.position: NDArray[np.float64] = np.array(info["pos_agent"])
        self._held = self.position
        self.score, self.is_over = 0.0, False

    def hold(self, steps: int) -> None:
        """Let time pass."""
        for _ in range(steps):
            self.act(self._held)

    def act(self, action: NDArray[np.float64]) -> None:
        """Execute an action for one control step."""
        if self.is_over:
            return
        self._held = action
        self.observation, reward, terminated, truncated, _ = self._env.step(action)
        self.score = max(self.score, float(reward))
        self.is_over = terminated or truncated


def run_case(env: gym.Env[Any, Any], loop: RecedingHorizon, hz: float, seconds: float) -> Recording:
    """Control episodes one after the other for `seconds`, not counting the first decision of each."""
    recording, seed = Recording(), FIRST_SEED
    while seconds > 0:
        world = World(env, seed)
        seconds -= run_episode(world, loop, 1 / hz, seconds, recording)
        recording.scores.append(world.score)
        seed += 1
    return recording


def run_episode(world: World, loop: RecedingHorizon, period: float, seconds: float, recording: Recording) -> float:
    """Control one episode at a fixed rate for at most `seconds`, and return how many it took.

    Its clock starts with the first action.
    """
    loop.reset(world.position)
    world.act(loop.step(world.observation, 0).action)
    started, step = time.perf_counter(), 1
    while not world.is_over and time.perf_counter() < started + seconds:
        deadline = started + step * period
        wait_until(deadline)
        late = time.perf_counter() - deadline
        recording.lateness.append(late)
        skipped = int(late / period)  # the world before this step took too long
        world.hold(skipped)
        control = loop.step(world.observation, step + skipped)
        now = max(control.step, int((time.perf_counter() - started) / period))
        world.hold(now - step - skipped)
        world.act(control.action)
        recording.num_missed += now - step
        recording.num_held += control.is_held
        if control.decision is not None:
            recording.latencies.append(control.decision.latency)
            recording.num_late_chunks += control.decision.problem is not None
        step = now + 1
    return time.perf_counter() - started


def wait_until(deadline: float) -> None:
    """Sleep, and turn in circles for the last part: sleeping ends late by a varying amount."""
    pause = deadline - time.perf_counter() - SPIN
    if pause > 0:
        time.sleep(pause)
    while time.perf_counter() < deadline:
        pass


def make_loop(policy: Any, hz: float, mode: str) -> RecedingHorizon:
    """Return a loop that decides every Ta steps; asynchronous, the rest of a prediction is there for late answers."""
    if mode == "blocking":
        return RecedingHorizon(policy, hz, compensate_latency=False)
    longest = policy.horizon - policy.n_obs_steps + 1
    return RecedingHorizon(policy, hz, n_action_steps=longest, replan_every=policy.n_action_steps, asynchronous=True)


def random_diffusion(drift: Policy) -> Policy:
    """Return a diffusion policy with the network and normaliser of `drift`, and random weights."""
    values = drift.config.to_mapping() | {"head": DIFFUSION, "num_candidates": 1, "mirrored": False}
    policy = build_policy(policy_config_from_mapping(values))
    normalizer = Normalizer(drift.normalizer.sizes)
    normalizer.load_state_dict(drift.normalizer.state_dict())
    policy.set_normalizer(normalizer)
    return policy.eval()


def summarize(recording: Recording) -> dict[str, Any]:
    """Return the numbers of a case for the JSON file; times in milliseconds."""
    steps = len(recording.lateness) + recording.num_missed
    return {
        "control_steps": steps,
        "missed_deadlines": recording.num_missed,
        "missed_share": recording.num_missed / max(steps, 1),
        "held_steps": recording.num_held,
        "chunks_too_late": recording.num_late_chunks,
        "lateness_ms": quantiles(recording.lateness),
        "decisions": len(recording.latencies),
        "decision_ms": quantiles(recording.latencies),
        "episode_scores": recording.scores,
    }


def quantiles(seconds: list[float]) -> dict[str, float] | None:
    """Return median, 99th percentile and maximum in milliseconds, or None of nothing."""
    if not seconds:
        return None
    p50, p99, largest = 1000 * np.percentile(seconds, (50, 99, 100))
    return {"p50": float(p50), "p99": float(p99), "max": float(largest)}


def draw(recordings: dict[tuple[float, str, str], Recording], path: Path) -> None:
    """Draw a histogram of the lateness of control steps for each rate."""
    rates = sorted({hz for hz, _, _ in recordings})
    figure, grid = plt.subplots(1, len(rates), figsize=(4.2 * len(rates), 3.4), squeeze=False, layout="constrained")
    edges = np.geomspace(1e-3, 1e3, 60)
    for axes, hz in zip(grid[0], rates, strict=True):
        for (rate, name, mode), recording in recordings.items():
            if rate == hz:
                late = np.clip(1000 * np.array(recording.lateness), edges[0], edges[-1])
                label = f"{name}, {mode}: {recording.num_missed} missed"
                axes.hist(late, edges, histtype="step", label=label, linestyle="-" if mode == MODES[0] else "--")
        axes.axvline(1000 / hz, color="0.6", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="lateness of a control step [ms]", title=f"{hz:g} Hz")
        axes.legend(fontsize=7)
    grid[0][0].set_ylabel("control steps")
    figure.suptitle("Jitter of the robot loop; the grey line is one period", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def print_table(cases: list[dict[str, Any]], console: Console) -> None:
    """Print one row a case."""
    table = Table(
        "Hz", "policy", "loop", "steps", "missed", "held", "late", "decision", caption="late, decision: p50 / p99 [ms]"
    )
    for case in cases:
        numbers = [str(case[name]) for name in ("control_steps", "missed_deadlines", "held_steps")]
        times = [case[kind] for kind in ("lateness_ms", "decision_ms")]
        shown = ["" if time is None else f"{time['p50']:.2f} / {time['p99']:.2f}" for time in times]
        table.add_row(f"{case['hz']:g}", case["policy"], case["loop"], *numbers, *shown)
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drift", default="pretrained/pusht", help="checkpoint with keypoint observations")
    parser.add_argument("--diffusion", default=None, help="checkpoint; random weights if absent")
    parser.add_argument("--hz", type=float, nargs="+", default=[10.0, 50.0, 200.0], help="control rates")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each case")
    parser.add_argument("--output", type=Path, default=Path("results/robot_loop.json"))
    parser.add_argument("--picture", type=Path, default=Path("results/robot_loop.png"))
    arguments = parser.parse_args()
    if min(arguments.hz) <= 0 or arguments.seconds <= 0:
        parser.error("--hz and --seconds must be positive.")
    return arguments


def main() -> None:
    """Run all cases; write numbers and picture."""
    arguments = parse_arguments()
    matplotlib.use("Agg")
    with command_line() as console:
        drift = load_policy(arguments.drift)
        diffusion = random_diffusion(drift) if arguments.diffusion is None else load_policy(arguments.diffusion)
        weights = "random weights: times only" if arguments.diffusion is None else arguments.diffusion
        console.print(f"drift: {arguments.drift}; diffusion: {weights}")
        policies = {"drift": drift, "diffusion": diffusion}
        env = gym.make("envs:drift_policy/PushT-v0", obs_type="keypoints")
        recordings: dict[tuple[float, str, str], Recording] = {}
        cases: list[dict[str, Any]] = []
        for policy in policies.values():
            warm_up(policy)
        with console.status("running in real time") as status:
            for hz in arguments.hz:
                for name, policy in policies.items():
                    for mode in MODES:
                        status.update(f"{name}, {mode}, {hz:g} Hz")
                        with make_loop(policy, hz, mode) as loop:
                            recording = run_case(env, loop, hz, arguments.seconds)
                        recordings[hz, name, mode] = recording
                        cases.append({"hz": hz, "policy": name, "loop": mode, **summarize(recording)})
        env.close()
        print_table(cases, console)
        draw(recordings, arguments.picture)
        facts = describe_run("-m examples.robot_loop", sys.argv[1:])
        evaluations = {name: policy.num_evaluations for name, policy in policies.items()}
        settings = {"seconds": arguments.seconds, "diffusion_weights": weights, "num_evaluations": evaluations}
        write_json(arguments.output, {**facts, **settings, "cases": cases})


if __name__ == "__main__":
    main()
