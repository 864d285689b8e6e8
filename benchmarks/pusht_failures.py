"""Why does a Push-T episode fail? Plays a checkpoint, sorts its failures, and draws and films them.

    python -m benchmarks.pusht_failures ckpt=pretrained/pusht [episodes=200] [output=results/pusht_failures.json]

An episode without success (coverage above 95 %) is, by its last hundred steps,

- imprecise: its best coverage was above 80 %;
- waiting: the block lay still and the agent stayed within 40 pixels of one place;
- circling: the block lay still and the agent moved further;
- unfinished: the block was still moving.

For those that wait, it measures what the policy intends: how far the actions lead that are executed before the next
decision, and how far those lead that the next decision discards.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from drift_policy import load_policy
from drift_policy.cli import command_line, parse_arguments
from drift_policy.errors import require
from drift_policy.evaluation.rollout import Episode, EvaluationConfig, rollout
from drift_policy.evaluation.video import film_rollouts
from drift_policy.manifest import describe_run, write_json
from drift_policy.policy import Policy

USAGE = __doc__ or ""
MAX_STEPS = 300
IMPRECISE = 0.8  # best coverage from which a failure was only imprecise
LAST_STEPS = 100  # what an episode was doing in the end
BLOCK_MOVED = 4.0  # pixels
WAIT_RADIUS = 40.0  # pixels
DRAWN = 10
SAMPLES = 64  # chunks whose mean is the policy's intention
Track = NDArray[np.float64]  # observations of one episode, [steps + 1, 20]: nine key points, then the agent


@dataclass
class FailureConfig:
    """Settings."""

    ckpt: str  # run folder, checkpoint folder or hf://owner/name of a Push-T policy from keypoints
    episodes: int = 200
    start_seed: int = 300000  # start states that neither chose checkpoints nor are reported elsewhere
    output: str = "results/pusht_failures.json"  # the pictures and the film lie beside it
    film: bool = False  # film the first failure of every kind

    def __post_init__(self) -> None:
        require(self.episodes >= 1, f"episodes must be at least 1, but is {self.episodes}.")
        require(self.start_seed >= 0, f"start_seed must not be negative, but is {self.start_seed}.")


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the observations of every episode by its seed."""

    def __init__(self, env: gym.Env[Any, Any], tracks: dict[int, list[NDArray[Any]]]) -> None:
        super().__init__(env)
        self._tracks = tracks
        self._seed = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a track if the seed is given, as rollouts do."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed = -1 if seed is None else seed
        self._tracks[self._seed] = [observation]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Lengthen the track."""
        result = self.env.step(action)
        self._tracks[self._seed].append(result[0])
        return result


def agent_of(track: Track) -> Track:
    """Positions of the agent, [steps + 1, 2] in pixels."""
    return track[:, -2:]


def block_of(track: Track) -> Track:
    """Mean of the block's key points, [steps + 1, 2] in pixels."""
    mean: Track = track[:, :-2].reshape(len(track), -1, 2).mean(axis=1)
    return mean


def kind_of_failure(track: Track, best_coverage: float) -> str:
    """Sort a failed episode; see above."""
    if best_coverage >= IMPRECISE:
        return "imprecise"
    agent, key_points = agent_of(track)[-LAST_STEPS:], track[-LAST_STEPS:, :-2]
    if np.ptp(key_points, axis=0).max() > BLOCK_MOVED:
        return "unfinished"
    centre = (agent.max(axis=0) + agent.min(axis=0)) / 2
    return "waiting" if np.linalg.norm(agent - centre, axis=1).max() <= WAIT_RADIUS else "circling"


def intention(policy: Policy, track: Track) -> dict[str, float]:
    """How far, in pixels, the mean chunk leads from the agent before and after the next decision would be made."""
    observed = track[-policy.n_obs_steps :].astype(np.float32)
    chunks = policy.sample_actions({"obs": observed[None]}, SAMPLES).numpy()[0]
    reach = np.linalg.norm(chunks.mean(axis=0) - agent_of(track)[-1], axis=1)
    executed = policy.n_obs_steps - 1 + policy.n_action_steps
    return {"executed_px": float(reach[:executed].max()), "discarded_px": float(reach[executed:].max(initial=0.0))}


def draw(tracks: dict[int, Track], kinds: dict[int, str], path: Path) -> None:
    """Draw failed episodes: the path of the agent from dark to bright, the block in the end."""
    shown = sorted(kinds, key=lambda seed: (kinds[seed], seed))[:DRAWN]
    columns = min(5, len(shown))
    figure, grid = plt.subplots(
        -(-len(shown) // columns),
        columns,
        figsize=(max(7.0, 2.6 * columns), 2.8 * -(-len(shown) // columns)),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, seed in zip(grid.flat, shown, strict=False):
        track = tracks[seed]
        agent, points = agent_of(track), track[-1, :-2].reshape(-1, 2)
        axes.scatter(*agent.T, c=np.arange(len(agent)), s=6, cmap="plasma")
        axes.scatter(*points.T, color="tab:blue", marker="s", s=25)
        axes.plot(*agent[0], "k^", markersize=7)
        axes.set(xlim=(0, 512), ylim=(512, 0), aspect="equal", xticks=[], yticks=[])
        axes.set_axis_on()
        axes.set_title(f"{kinds[seed]} ({seed})", fontsize=10)
    figure.suptitle("Failures: agent from dark to bright, start as triangle, key points of the block in the end")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def run(config: FailureConfig, arguments: list[str]) -> dict[str, Any]:
    """Play, sort, draw; return what is written."""
    policy = load_policy(config.ckpt)
    lists: dict[int, list[NDArray[Any]]] = {}
    make_env = partial(gym.make, "envs:drift_policy/PushT-v0", obs_type="keypoints")
    settings = EvaluationConfig(n_episodes=config.episodes, start_seed=config.start_seed, max_steps=MAX_STEPS)
    result = rollout(policy, lambda: Recorder(make_env(), lists), settings)
    tracks = {seed: np.asarray(track, dtype=np.float64) for seed, track in lists.items()}
    failed: list[Episode] = [episode for episode in result.episodes if not episode.success]
    kinds = {episode.seed: kind_of_failure(tracks[episode.seed], episode.score) for episode in failed}
    waiting = [intention(policy, tracks[seed]) for seed, kind in kinds.items() if kind == "waiting"]
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if kinds:
        draw(
            tracks,
            {seed: kind for seed, kind in kinds.items() if kind != "imprecise"} or kinds,
            output.with_suffix(".png"),
        )
    if config.film:
        for kind in sorted(set(kinds.values())):
            seed = min(seed for seed, own in kinds.items() if own == kind)
            one = EvaluationConfig(n_episodes=1, start_seed=seed, max_steps=MAX_STEPS)
            film_rollouts(
                policy,
                partial(make_env, render_mode="rgb_array"),
                one,
                1,
                output.with_name(f"{output.stem}_{kind}.mp4"),
                10,
            )
    content = {
        **describe_run("-m benchmarks.pusht_failures", arguments),
        "start_seed": config.start_seed,
        "episodes": config.episodes,
        "noise_scale": policy.config.noise_scale,
        "num_candidates": policy.config.num_candidates,
        "score": result.score.to_mapping(),
        "success": result.success.to_mapping(),
        "kinds": dict(Counter(kinds.values()).most_common()),
        "waiting": waiting,
        "failures": [{"seed": seed, "kind": kind} for seed, kind in kinds.items()],
    }
    write_json(output, content)
    return content


def main() -> None:
    """Read the arguments and run."""
    with command_line() as console:
        arguments = sys.argv[1:]
        config = parse_arguments(FailureConfig, arguments, USAGE)
        content = run(config, arguments)
        console.print(f"success  {content['success']['mean']:.2f}, coverage {content['score']['mean']:.3f}")
        console.print(f"failures {content['kinds']}")
        for row in content["waiting"]:
            console.print(
                f"waiting  {row['executed_px']:.0f} px before the next decision, {row['discarded_px']:.0f} after"
            )
        console.print(f"written  {config.output}")


if __name__ == "__main__":
    main()
