"""The evaluation protocol: seeds, scores, independence of the number of environments."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from drift_policy.data.normalizer import Normalizer
from drift_policy.errors import CheckpointError, ConfigurationError, EnvironmentProcessError
from drift_policy.evaluation.chunked_episode import ChunkedEpisode
from drift_policy.evaluation.rollout import Episode, EvaluationConfig, RolloutResult, rollout, space_mismatch
from drift_policy.policy import Policy
from drift_policy.task import EnvConfig, make_env_factory
from drift_policy.training.config import RolloutConfig
from tests.helpers.image_policies import camera, tiny_image_policy
from tests.helpers.point_env import ID, PointEnv
from tests.helpers.policies import tiny_policy

MAKE_ENV: Callable[[], gym.Env[Any, Any]] = make_env_factory(EnvConfig(id=ID), 1000)


def point_policy(head: str = "drift", seed: int = 0, num_candidates: int = 1) -> Policy:
    torch.manual_seed(seed)
    policy = tiny_policy(head, observations={"obs": 4}, num_candidates=num_candidates)
    unit_square = {"obs": np.array([[0.0] * 4, [1.0] * 4]), "action": np.array([[0.0] * 2, [1.0] * 2])}
    policy.set_normalizer(Normalizer.fit(unit_square))
    return policy


@pytest.mark.parametrize("head", ["drift", "diffusion"])
def test_results_do_not_depend_on_how_many_run_side_by_side(head: str) -> None:
    policy = point_policy(head)
    results = [
        rollout(policy, MAKE_ENV, EvaluationConfig(n_episodes=7, max_steps=25, n_envs=n_envs)).episodes
        for n_envs in (1, 3, 7, 20)
    ]
    assert results[0] == results[1] == results[2] == results[3]
    assert len({episode.score for episode in results[0]}) == 7


def test_asynchronous_environments_give_the_same_results() -> None:
    policy = point_policy()
    config = EvaluationConfig(n_episodes=4, max_steps=15, n_envs=2)
    expected = rollout(policy, MAKE_ENV, config).episodes
    config.asynchronous = True
    assert rollout(policy, MAKE_ENV, config).episodes == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rollout_can_be_stopped_before_any_decision(asynchronous: bool) -> None:
    decisions = iter(range(3))
    config = EvaluationConfig(n_episodes=4, max_steps=1000, n_envs=2, asynchronous=asynchronous)
    with pytest.raises(StopIteration):
        rollout(point_policy(), MAKE_ENV, config, on_decision=lambda: next(decisions))  # type: ignore[arg-type,return-value]  # as a guard does


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda process: process.kill(), "SIGKILL, which the system sends when memory runs out"),
        (lambda process: os.kill(process.pid, signal.SIGSEGV), "SIGSEGV"),
    ],
    ids=["killed", "crashed"],
)
@pytest.mark.parametrize("decision", [0, 2])
def test_an_environment_that_dies_is_reported_with_what_to_do(
    how: Callable[[Any], None], what: str, decision: int
) -> None:
    decisions, workers = itertools.count(), []

    def kill_one() -> None:
        if next(decisions) == decision:
            workers.extend(multiprocessing.active_children())
            how(workers[0])

    config = RolloutConfig(n_episodes=4, max_steps=1000, n_envs=2, asynchronous=True)
    expected = rf"ended by itself \({what}\).*rollout\.n_envs \(now 2\).*rollout\.asynchronous=false"
    with pytest.raises(EnvironmentProcessError, match=expected):
        rollout(point_policy(), MAKE_ENV, config, on_decision=kill_one)
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


class EndOfTape(PointEnv):
    """Raises in its first step what a closed pipe raises too."""

    def step(self, action: np.ndarray) -> Any:
        raise EOFError("the tape is at its end")


def test_an_error_of_an_environment_stays_what_it_is() -> None:
    config = EvaluationConfig(n_episodes=2, max_steps=5, n_envs=2, asynchronous=True)
    with pytest.raises(EOFError, match="the tape is at its end"):
        rollout(point_policy(), EndOfTape, config)


def dies_at_once() -> gym.Env[Any, Any]:
    """Makes an environment here, and ends a process that was started for it."""
    if multiprocessing.parent_process() is not None:
        os._exit(3)
    return PointEnv()


def test_an_environment_that_dies_at_its_start_is_reported() -> None:
    config = EvaluationConfig(n_episodes=2, max_steps=5, n_envs=2, asynchronous=True)
    with pytest.raises(EnvironmentProcessError, match=r"ended while it started.*evaluation\.asynchronous=false"):
        rollout(point_policy(), dies_at_once, config)


def test_seeds_are_consecutive_and_in_order() -> None:
    seen: list[Episode] = []
    config = EvaluationConfig(n_episodes=5, start_seed=42, max_steps=10, n_envs=2)
    result = rollout(point_policy(), MAKE_ENV, config, seen.append)
    assert [episode.seed for episode in result.episodes] == [42, 43, 44, 45, 46]
    assert sorted(seen, key=lambda episode: episode.seed) == result.episodes


def test_policy_seed_and_noise_scale_change_the_episodes() -> None:
    policy = point_policy()

    def scores(**changes: Any) -> list[float]:
        config = EvaluationConfig(n_episodes=3, max_steps=20, **changes)
        return [episode.score for episode in rollout(policy, MAKE_ENV, config).episodes]

    assert scores() == scores()
    assert scores() != scores(policy_seed=1)
    assert scores(noise_scale=0.0) == scores(noise_scale=0.0, policy_seed=1)


def test_decisions_draw_the_policys_candidates_or_those_of_the_evaluation() -> None:
    policy = point_policy(num_candidates=4)
    drawn: list[int] = []
    policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[1]))

    def episodes(number: int | None) -> list[Episode]:
        drawn.clear()
        config = EvaluationConfig(n_episodes=3, max_steps=10, num_candidates=number)
        return rollout(policy, MAKE_ENV, config).episodes

    own = episodes(None)
    assert set(drawn) == {4}
    assert episodes(4) == own
    single = episodes(1)
    assert set(drawn) == {1}
    assert single == rollout(point_policy(), MAKE_ENV, EvaluationConfig(n_episodes=3, max_steps=10)).episodes


def test_batched_decisions_take_fewer_forward_passes() -> None:
    policy = point_policy()
    one = rollout(policy, MAKE_ENV, EvaluationConfig(n_episodes=6, max_steps=9, n_envs=6))
    six = rollout(policy, MAKE_ENV, EvaluationConfig(n_episodes=6, max_steps=9, n_envs=6, decision_batch_size=6))
    assert len(one.latency_ms) == 6 * len(six.latency_ms)


def test_the_time_of_a_decision_is_told_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = point_policy()
    original = policy.predict_action

    def slow(obs: Any, **options: Any) -> dict[str, torch.Tensor]:
        time.sleep(0.02)
        return original(obs, **options)

    monkeypatch.setattr(policy, "predict_action", slow)
    result = rollout(policy, MAKE_ENV, EvaluationConfig(n_episodes=1, max_steps=6))
    assert result.latency_ms and all(20 <= value <= 1000 * result.wall_s for value in result.latency_ms)


def test_rollout_equals_stepping_the_environment_by_hand() -> None:
    """Score, success and the action slice, against a plain loop."""
    policy = point_policy()
    seed, max_steps = 77, 20
    episode = rollout(policy, MAKE_ENV, EvaluationConfig(n_episodes=1, start_seed=seed, max_steps=max_steps)).episodes[
        0
    ]

    state = np.random.SeedSequence([0, seed]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    env = PointEnv()
    now, _ = env.reset(seed=seed)
    history, best, success, steps = [now, now], 0.0, False, 0
    while steps < max_steps and not success:
        noise = torch.randn(1, policy.horizon, policy.action_dim, generator=generator)
        chunk = policy.predict_action({"obs": np.stack(history[-2:])[None]}, noise=noise)["action_pred"][0]
        for action in chunk[policy.n_obs_steps - 1 :][: policy.n_action_steps].numpy():
            now, reward, success, _, _ = env.step(action)
            history.append(now)
            best, steps = max(best, reward), steps + 1
            if success or steps == max_steps:
                break
    assert (episode.score, episode.success, episode.steps) == (best, success, steps)


def test_ended_episode_ignores_chunks_until_reset() -> None:
    env = ChunkedEpisode(PointEnv(), n_obs_steps=2, n_action_steps=3, max_steps=4)
    first, info = env.reset(seed=0)
    np.testing.assert_array_equal(first["obs"][0], first["obs"][1])
    chunk = np.full((3, 2), 0.5, np.float32)
    env.step(chunk)
    observation, _, _, _, info = env.step(chunk)
    assert (info["steps"], info["episode_over"]) == (4, True)
    again, _, terminated, truncated, info = env.step(chunk)
    np.testing.assert_array_equal(again["obs"], observation["obs"])
    assert (info["steps"], terminated, truncated) == (4, False, False)
    _, info = env.reset(seed=1)
    assert (info["steps"], info["episode_over"], info["score"]) == (0, False, -np.inf)


class SolvedOnce(PointEnv):
    """Solved in its second step alone, three subtasks done; never ends by itself."""

    def reset(self, **options: Any) -> Any:
        self._step = 0
        return super().reset(**options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, *_ = super().step(action)
        self._step += 1
        solved = self._step == 2
        return observation, 0.7 if solved else 0.1, False, False, {"is_success": solved, "n_completed": 1 + 2 * solved}


def test_the_best_of_any_step_counts() -> None:
    config = EvaluationConfig(n_episodes=1, start_seed=9, max_steps=6)
    assert rollout(point_policy(), SolvedOnce, config).episodes == [Episode(9, 0.7, True, 6, completed=3)]


class SolvedInTheFirst(PointEnv):
    """Solved in its first episode; says nothing of success or subtasks in the others."""

    num_episodes = 0

    def reset(self, **options: Any) -> Any:
        self.num_episodes += 1
        return super().reset(**options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, *_ = super().step(action)
        if self.num_episodes == 1:
            return observation, 0.9, False, False, {"is_success": True, "n_completed": 2}
        return observation, 0.1, False, False, {}


def test_an_episode_begins_without_what_the_one_before_reached() -> None:
    config = EvaluationConfig(n_episodes=2, start_seed=9, max_steps=6, n_envs=1)
    result = rollout(point_policy(), SolvedInTheFirst, config)
    assert result.episodes == [Episode(9, 0.9, True, 6, completed=2), Episode(10, 0.1, False, 6)]
    assert result.success_reported, "by one of the episodes"


class SaysNothing(PointEnv):
    """Reports success under a name of its own."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *result, info = super().step(action)
        return *result, {"success": info["is_success"]}


def test_an_environment_that_never_reports_success_is_known_as_such() -> None:
    config = EvaluationConfig(n_episodes=3, max_steps=6, n_envs=2)
    assert rollout(point_policy(), MAKE_ENV, config).success_reported
    assert not rollout(point_policy(), SaysNothing, config).success_reported


def test_a_phase_is_the_share_of_episodes_with_at_least_so_many_subtasks() -> None:
    result = RolloutResult(
        [Episode(seed, 0.0, False, 1, completed) for seed, completed in enumerate((0, 1, 2, 4))], [], 0
    )
    assert [result.phase(number).mean for number in (1, 2, 3, 4, 5)] == [0.75, 0.5, 0.25, 0.25, 0]


def test_the_settings_of_decisions_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, given = point_policy(), list[dict[str, Any]]()
    original = policy.predict_action

    def recording(obs: Any, **options: Any) -> dict[str, torch.Tensor]:
        given.append(options)
        return original(obs, **options)

    monkeypatch.setattr(policy, "predict_action", recording)
    settings = {"noise_scale": 0.25, "num_candidates": 2, "mirrored": False}
    rollout(policy, MAKE_ENV, EvaluationConfig(n_episodes=1, max_steps=3, **settings))
    assert given and all(options.pop("generator") and options == settings for options in given)


def test_checkpoint_of_other_sizes_is_refused() -> None:
    config = EvaluationConfig(n_episodes=1, max_steps=3)
    with pytest.raises(CheckpointError, match=r"commands 3 numbers.*takes 2"):
        rollout(tiny_policy(observations={"obs": 4}, action_dim=3), MAKE_ENV, config)
    with pytest.raises(CheckpointError, match=r"observes 'obs' with shape \[7\]"):
        rollout(tiny_policy(observations={"obs": 7}), MAKE_ENV, config)
    with pytest.raises(CheckpointError, match="observes 'joints'"):
        rollout(tiny_policy(observations={"joints": 4}), MAKE_ENV, config)


class ChannelsLast(PointEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"camera": spaces.Box(0, 255, (24, 32, 3), np.uint8)})


def test_images_with_the_channels_last_are_named_as_such() -> None:
    policy = tiny_image_policy(cameras={"camera": camera(24, 32)}, numbers=False)
    env = ChunkedEpisode(ChannelsLast(), 1, 1, 5)
    found = space_mismatch(policy, env.observation_space, env.action_space)
    assert found is not None and "[24, 32, 3]} with the channels last, which must come first" in found


def test_spaces_that_no_policy_can_use_are_explained() -> None:
    env = PointEnv()
    env.action_space = spaces.Discrete(3)
    with pytest.raises(ConfigurationError, match="The action of the environment is a Discrete.*must be a Box"):
        ChunkedEpisode(env, 1, 1, 5)
    env = PointEnv()
    env.observation_space = spaces.Dict({"mission": spaces.Text(5)})
    with pytest.raises(ConfigurationError, match="The observation 'mission' of the environment is a Text"):
        ChunkedEpisode(env, 1, 1, 5)


def test_an_episode_is_as_long_as_asked_for_or_else_as_the_task_says() -> None:
    assert EvaluationConfig().for_task(300).step_limit == 300
    assert EvaluationConfig(max_steps=7).for_task(300).step_limit == 7
    with pytest.raises(ConfigurationError, match=r"rollout\.max_steps has no value"):
        _ = RolloutConfig().step_limit


@pytest.mark.parametrize("field", ["n_episodes", "max_steps", "n_envs", "decision_batch_size"])
def test_bad_evaluation_values_name_the_field(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"evaluation\.{field}"):
        EvaluationConfig(**{field: 0})


def test_unknown_environment_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="Nowhere-v0"):
        make_env_factory(EnvConfig(id="tests.helpers.point_env:test/Nowhere-v0"), 10)
    with pytest.raises(ConfigurationError, match="no_such_module"):
        make_env_factory(EnvConfig(id="no_such_module:test/Point-v0"), 10)
