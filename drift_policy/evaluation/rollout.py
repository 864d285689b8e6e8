"""Closed-loop evaluation by Diffusion Policy's protocol: seeded episodes, the highest reward of each counts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from drift_policy.candidates import can_be_halved, takes_both_sides
from drift_policy.errors import CheckpointError, ConfigurationError, require
from drift_policy.evaluation.chunked_episode import ChunkedEpisode
from drift_policy.evaluation.environment_processes import processes_of_environments
from drift_policy.evaluation.statistics import Interval, mean_interval, success_interval
from drift_policy.policy import Policy

MakeEnv = Callable[[], gym.Env[Any, Any]]
NO_SUCCESS_REPORTED = "note     the environment never reported info['is_success']: every episode counts as not solved"


@dataclass
class EvaluationConfig:
    """Which episodes are rolled out, and how. The defaults are Diffusion Policy's test protocol."""

    section: ClassVar[str] = "evaluation"  # where these settings stand in a configuration, for messages
    n_episodes: int = 50  # episodes, one seed each
    start_seed: int = 100000  # seed of the first episode; the others follow one by one
    max_steps: int | None = None  # environment steps after which an episode ends; null is the task's number
    n_envs: int = 10  # environments that run side by side; changes speed, never results
    asynchronous: bool = False  # one process for each environment: worth it where stepping or rendering is slow
    decision_batch_size: int = 1  # observations in one forward pass; above 1, rounding may differ between batches
    policy_seed: int = 0  # seed of the policy's noise, together with the episode's seed
    noise_scale: float | None = None  # factor on the policy's noise; null takes the checkpoint's own
    mirrored: bool | None = None  # half of the candidates from the observation's mirror image; null as above
    num_candidates: int | None = None  # chunks drawn for a decision, the most typical one is executed; null as above

    def for_task(self, max_steps: int) -> "EvaluationConfig":
        """Return this with the task's length of an episode, unless another one was set."""
        return self if self.max_steps is not None else replace(self, max_steps=max_steps)

    @property
    def step_limit(self) -> int:
        """Environment steps after which an episode ends.

        Raises:
            ConfigurationError: none was set and no task was asked.
        """
        if self.max_steps is None:
            raise ConfigurationError(
                f"{self.section}.max_steps has no value: set it, or take the task's with for_task."
            )
        return self.max_steps

    def decisions_of(self, policy: Policy) -> dict[str, Any]:
        """Return how this policy's decisions are made under these settings, as a manifest records it."""
        config = policy.config
        number = config.num_candidates if self.num_candidates is None else self.num_candidates
        mirrored = config.mirrored if self.mirrored is None else self.mirrored
        return {
            "noise_scale": config.noise_scale if self.noise_scale is None else self.noise_scale,
            "num_candidates": number,
            "mirrored": takes_both_sides(number, mirrored),
        }

    def check_fits(self, policy: Policy) -> None:
        """Refuse candidates that this policy cannot give.

        Raises:
            ConfigurationError: it has no mirror, or an odd number of candidates shall be shared by two sides.
        """
        require(
            not self.mirrored or policy.mirror is not None,
            f"{self.section}.mirrored=true needs a policy that was trained with policy.mirrored=true: leave it out.",
        )
        decisions = self.decisions_of(policy)
        number = decisions["num_candidates"]
        require(
            not decisions["mirrored"] or can_be_halved(number),
            f"{self.section}.num_candidates={number} cannot be shared by an observation and its mirror image: give an "
            f"even number, or {self.section}.mirrored=false.",
        )

    def __post_init__(self) -> None:
        for name in ("n_episodes", "max_steps", "n_envs", "decision_batch_size", "num_candidates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{self.section}.{name} must be at least 1, but is {value}.")
        for name in ("start_seed", "policy_seed", "noise_scale"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigurationError(f"{self.section}.{name} must not be negative, but is {value}.")


@dataclass(frozen=True)
class Episode:
    """What one episode gave."""

    seed: int
    score: float  # highest reward
    success: bool
    steps: int
    completed: int = 0  # subtasks of the task that were completed, where the environment counts them


@dataclass(frozen=True)
class RolloutResult:
    """All episodes of an evaluation and the time of every decision."""

    episodes: list[Episode]
    latency_ms: list[float] = field(repr=False)  # predict_action, one entry for each forward pass
    wall_s: float
    success_reported: bool = True  # whether the environment ever said is_success; without it no episode succeeds

    @property
    def score(self) -> Interval:
        """Mean highest reward."""
        return mean_interval([episode.score for episode in self.episodes])

    @property
    def success(self) -> Interval:
        """Success rate."""
        return success_interval([episode.success for episode in self.episodes])

    def phase(self, number: int) -> Interval:
        """Share of the episodes that completed at least `number` subtasks (the p1, p2, ... of published tables)."""
        return success_interval([episode.completed >= number for episode in self.episodes])

    def latency(self, percentile: float) -> float:
        """Return a percentile of the decision time in milliseconds."""
        return float(np.percentile(self.latency_ms, percentile))


@dataclass
class _Slot:
    """One environment of the vector and the episode it is playing."""

    index: int
    seed: int
    generator: torch.Generator


def rollout(
    policy: Policy,
    make_env: MakeEnv,
    config: EvaluationConfig,
    on_episode: Callable[[Episode], None] | None = None,
    on_decision: Callable[[], None] | None = None,
) -> RolloutResult:
    """Play the configured episodes and return their scores in the order of their seeds.

    A finished environment takes the next seed at once. Every episode has its own noise generator, so the
    results do not depend on `n_envs`.

    Args:
        policy: in evaluation mode.
        make_env: makes one environment; called in the worker process with `asynchronous`.
        config: which episodes.
        on_episode: called after each episode, for progress displays.
        on_decision: called before each decision; it may raise to end the rollout.

    Raises:
        CheckpointError: the policy's observation or action sizes are not the environment's.
        ConfigurationError: the policy cannot give the candidates that are asked for.
        EnvironmentProcessError: the process of an environment ended by itself.
    """
    config.check_fits(policy)
    n_envs = min(config.n_envs, config.n_episodes)
    started = time.perf_counter()
    episodes: list[Episode] = []
    latency_ms: list[float] = []
    reported = False
    with _vector_env(policy, make_env, config, n_envs) as envs:
        mismatch = space_mismatch(policy, envs.single_observation_space, envs.single_action_space)
        if mismatch is not None:
            raise CheckpointError(f"{mismatch}: the checkpoint belongs to another task.")
        seeds = iter(range(config.start_seed, config.start_seed + config.n_episodes))
        active = [_new_slot(index, seed, config) for index, seed in zip(range(n_envs), seeds, strict=False)]
        observation, _ = envs.reset(seed=[slot.seed for slot in active])  # type: ignore[arg-type]  # lists are allowed
        actions = np.asarray(envs.action_space.sample())  # shape and type; every row is overwritten before use
        while active:
            if on_decision is not None:
                on_decision()
            _decide(policy, observation, active, actions, config, latency_ms)
            observation, _, _, _, info = envs.step(actions)
            ended = [slot for slot in active if info["episode_over"][slot.index]]
            for slot in ended:
                episodes.append(_finished_episode(slot, info))
                reported = reported or bool(info["success_reported"][slot.index])
                if on_episode is not None:
                    on_episode(episodes[-1])
            refilled = [_new_slot(slot.index, seed, config) for slot, seed in zip(ended, seeds, strict=False)]
            if refilled:
                observation = _reset_slots(envs, refilled)
            active = [slot for slot in active if slot not in ended] + refilled
    episodes.sort(key=lambda episode: episode.seed)
    return RolloutResult(episodes, latency_ms, time.perf_counter() - started, reported)


@contextmanager
def _vector_env(policy: Policy, make_env: MakeEnv, config: EvaluationConfig, n_envs: int) -> Iterator[VectorEnv]:
    # Worker processes are sent what this holds: sizes, not the policy.
    make_chunked = partial(_make_chunked, make_env, policy.n_obs_steps, policy.n_action_steps, config.step_limit)
    if config.asynchronous:
        with processes_of_environments(make_chunked, n_envs, config.section) as apart:
            yield apart
        return
    envs = SyncVectorEnv([make_chunked] * n_envs, autoreset_mode=AutoresetMode.DISABLED)
    try:
        yield envs
    finally:
        envs.close()


def _make_chunked(make_env: MakeEnv, n_obs_steps: int, n_action_steps: int, max_steps: int) -> ChunkedEpisode:
    return ChunkedEpisode(make_env(), n_obs_steps, n_action_steps, max_steps)


def space_mismatch(policy: Policy, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> str | None:
    """Say where a policy does not see and command exactly what an environment shows and takes; None if it does.

    Args:
        policy: any.
        observation_space: of a `ChunkedEpisode`.
        action_space: of it.
    """
    action_dim = action_space.shape[-1]  # type: ignore[index]  # a Box has a shape
    if policy.action_dim != action_dim:
        return f"The policy commands {policy.action_dim} numbers, but the environment takes {action_dim}"
    shown = {key: list(box.shape[1:]) for key, box in observation_space.items()}  # type: ignore[attr-defined]  # a Dict
    for key, spec in policy.config.observations.items():
        if shown.get(key) != spec.shape:
            last = spec.kind == "image" and shown.get(key) == [*spec.shape[1:], spec.shape[0]]
            hint = " with the channels last, which must come first" if last else ""
            return f"The policy observes {key!r} with shape {spec.shape}, but the environment shows {shown}{hint}"
    return None


def episode_generator(policy_seed: int, episode: int) -> torch.Generator:
    """Return the source of the policy's noise in an episode, given the episode's seed or number."""
    state = np.random.SeedSequence([policy_seed, episode]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def _new_slot(index: int, seed: int, config: EvaluationConfig) -> _Slot:
    return _Slot(index, seed, episode_generator(config.policy_seed, seed))


def _decide(
    policy: Policy,
    observation: dict[str, np.ndarray],
    active: list[_Slot],
    actions: np.ndarray,
    config: EvaluationConfig,
    latency_ms: list[float],
) -> None:
    """Write the next chunk of every active slot to `actions` [slots, Ta, Da]."""
    for first in range(0, len(active), config.decision_batch_size):
        slots = active[first : first + config.decision_batch_size]
        indices = [slot.index for slot in slots]
        started = time.perf_counter()
        chunk = policy.predict_action(
            {key: observation[key][indices] for key in policy.config.observations},
            generator=[slot.generator for slot in slots],
            noise_scale=config.noise_scale,
            num_candidates=config.num_candidates,
            mirrored=config.mirrored,
        )
        actions[indices] = chunk["action"].cpu().numpy()
        latency_ms.append((time.perf_counter() - started) * 1000)


def _reset_slots(envs: VectorEnv, slots: list[_Slot]) -> dict[str, np.ndarray]:
    mask = np.zeros(envs.num_envs, dtype=np.bool_)
    seeds: list[int | None] = [None] * envs.num_envs
    for slot in slots:
        mask[slot.index] = True
        seeds[slot.index] = slot.seed
    observation, _ = envs.reset(seed=seeds, options={"reset_mask": mask})  # type: ignore[arg-type]  # lists are allowed
    return observation


def _finished_episode(slot: _Slot, info: dict[str, np.ndarray]) -> Episode:
    return Episode(
        seed=slot.seed,
        score=float(info["score"][slot.index]),
        success=bool(info["success"][slot.index]),
        completed=int(info["completed"][slot.index]),
        steps=int(info["steps"][slot.index]),
    )
