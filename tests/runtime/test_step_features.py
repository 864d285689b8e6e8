"""Steps are encoded once, when they come, and no decision changes by it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy import Policy
from drift_policy.runtime.chunk_guard import ChunkGuard
from drift_policy.runtime.export import export_policy
from drift_policy.runtime.observations import ObservationHistory, stacked
from drift_policy.runtime.onnx_policy import OnnxPolicy
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.spec import describe_policy
from drift_policy.runtime.step_features import StepHistory, decide, encode_newest
from drift_policy.runtime.warm_up import warm_up
from tests.helpers.image_policies import CROPPED, camera, tiny_image_policy
from tests.helpers.policies import CallCounter, tiny_obs, tiny_policy
from tests.helpers.scripted_policy import Clock

ACTION_RANGE = 400.0  # of the tiny policies' demonstrations
KINDS = ("eager", "onnx")
# How it runs, observed and executed steps: windows with gaps between them, overlapping ones, and one at every step.
CASES = [("eager", (1, 2)), ("eager", (2, 1)), ("eager", (2, 3)), ("eager", (3, 4)), ("onnx", (2, 3)), ("onnx", (3, 2))]
CAMERAS = {"left": CROPPED, "right": camera(crop=[8, 9])}

Episode = list[dict[str, np.ndarray]]
RunAs = Callable[[str, Policy], Any]


def make(n_obs_steps: int = 2, n_action_steps: int = 3) -> Policy:
    """Return a policy whose decisions are repeatable, unless a test gives noise with noise_scale=1."""
    sizes: dict[str, Any] = {"n_obs_steps": n_obs_steps, "n_action_steps": n_action_steps, "horizon": 7}
    return tiny_image_policy("drift", cameras=CAMERAS, noise_scale=0.0, **sizes)


@pytest.fixture(scope="module")
def run_as(tmp_path_factory: pytest.TempPathFactory) -> RunAs:
    """Give a policy as it is or exported; equal policies are exported once."""
    folder = tmp_path_factory.mktemp("exported")

    def run(kind: str, policy: Policy) -> Any:
        if kind == "eager":
            return policy
        pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")
        facts = (len(policy.config.observations), policy.n_obs_steps, policy.n_action_steps, policy.encodes_steps)
        path = folder / f"{'_'.join(map(str, facts))}.onnx"
        if not path.exists():
            export_policy(policy, path)
        return OnnxPolicy(path, seed=0)

    return run


def episode(policy: Policy, steps: int, seed: int = 0) -> Episode:
    drawn = tiny_obs(policy, steps, seed)
    return [{key: value[step, 0].numpy() for key, value in drawn.items()} for step in range(steps)]


def whole_observation_actions(policy: Policy, observations: Episode) -> np.ndarray:
    """What the policy executes if every decision encodes all that it observes."""
    history = ObservationHistory(describe_policy(policy))
    actions: list[np.ndarray] = []
    for number, observation in enumerate(observations):
        history.append(observation)
        if number % policy.n_action_steps == 0:
            actions.extend(policy.predict_action(stacked(history.window()))["action"][0].numpy())
    return np.stack(actions[: len(observations)])


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-5 * ACTION_RANGE)


@pytest.mark.parametrize(("kind", "sizes"), CASES, ids=str)
def test_an_episode_is_that_of_whole_observations(kind: str, sizes: tuple[int, int], run_as: RunAs) -> None:
    policy = make(*sizes)
    run = run_as(kind, policy)
    assert run.encodes_steps == (sizes[0] > 1)
    for seed in range(2):  # the second episode must know nothing of the first
        observations = episode(policy, 9, seed)
        expected = whole_observation_actions(policy, observations)
        run.reset()
        assert_same([run.select_action(observation) for observation in observations], expected)
        loop = RecedingHorizon(run, 10.0, clock=Clock())
        assert_same([loop.step(observation).action for observation in observations], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_asynchronous_decisions_are_those_of_whole_observations(kind: str, run_as: RunAs) -> None:
    policy = make(3, 2)
    run = run_as(kind, policy)
    observations = episode(policy, 12)
    settings: dict[str, Any] = {"n_action_steps": 5, "replan_every": 4, "asynchronous": True}
    with RecedingHorizon(run, 10.0, **settings) as loop:
        actions: list[np.ndarray] = []
        for _ in range(2):
            loop.reset()
            for observation in observations:
                actions.append(loop.step(observation).action)
                if loop._pending is not None:
                    loop._pending.answer.result(10)
    # A chunk takes over one step after its decision, so that the old one's fifth action is executed.
    history, predictions = ObservationHistory(describe_policy(policy)), []
    for observation in observations:
        history.append(observation)
        predictions.append(policy.predict_action(stacked(history.window()))["action_pred"][0, 2:].numpy())
    made_at = [0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    expected = [predictions[made][step - made] for step, made in enumerate(made_at)]
    assert_same(actions, expected * 2)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 4), (3, 1)], ids=str)
def test_after_the_first_decision_no_call_encodes_more_than_one_step(sizes: tuple[int, int]) -> None:
    policy = make(*sizes)
    counter = CallCounter(policy.encoder.backbones["left"])
    rows = []
    for observation in episode(policy, 3 * sizes[1] + 1):
        before = sum(counter.rows)
        policy.select_action(observation)
        rows.append(sum(counter.rows) - before)
    assert rows[0] == sizes[0]
    # In each chunk, the steps that the next decision observes.
    assert rows[1:] == ([0] * max(sizes[1] - sizes[0], 0) + [1] * min(sizes[0], sizes[1])) * 3


def test_a_decision_of_the_loop_encodes_the_newest_step_alone() -> None:
    policy = make()
    loop = RecedingHorizon(policy, 10.0, replan_every=3)
    counter = CallCounter(policy.encoder.backbones["left"])
    rows = []
    for observation in episode(policy, 7):
        counter.rows.clear()
        is_decision = loop.step(observation).decision is not None
        rows.append((is_decision, sum(counter.rows)))
    assert rows == [(True, 2), (False, 0), (False, 1), (True, 1), (False, 0), (False, 1), (True, 1)]


def test_policies_that_see_no_images_encode_nothing_ahead() -> None:
    policy = tiny_policy("regression")
    assert not policy.encodes_steps
    counter = CallCounter(policy.encoder)
    for observation in torch.zeros(4, 5):
        policy.select_action(observation)
    assert counter.calls == 2


def test_a_rejected_chunk_is_decided_again_from_all_that_is_observed() -> None:
    policy = make()
    observations = episode(policy, 6)
    guard = ChunkGuard(max_velocity=1e-3)
    loop = RecedingHorizon(policy, 10.0, guard=guard)
    loop.reset(position=np.zeros(2))
    counter = CallCounter(policy.encoder.backbones["left"])
    steps = [loop.step(observation) for observation in observations]
    assert all(step.is_held and step.decision is not None for step in steps)
    assert sum(counter.rows) == len(observations) + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_with_features_is_predicted_as_without(kind: str, batch: int, run_as: RunAs) -> None:
    policy = make(3, 2)
    run = run_as(kind, policy)
    obs = {key: value.numpy() for key, value in tiny_obs(policy, batch).items()}
    noise = np.random.default_rng(0).standard_normal((batch, policy.horizon, 2)).astype(np.float32)
    expected = policy.predict_action(obs, noise=noise, noise_scale=1.0)["action_pred"]
    first, second = (run.encode_step({key: value[:, n : n + 1] for key, value in obs.items()}) for n in (0, 1))
    assert first.shape == (batch, run.feature_size)
    for known in ([], [first], [first, second]):
        newest = {key: value[:, len(known) :] for key, value in obs.items()}
        answer = run.predict_action(newest, noise=noise, noise_scale=1.0, features=known)
        assert_same(answer["action_pred"], expected)
        assert answer["features"].shape == (batch, 3, run.feature_size)
        np.testing.assert_allclose(answer["features"][:, 0], first, rtol=1e-5, atol=1e-5)
    assert "features" not in run.predict_action(obs)


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_do_not_fit_are_refused(kind: str, run_as: RunAs) -> None:
    policy = make()
    run = run_as(kind, policy)
    obs = {key: value.numpy() for key, value in tiny_obs(policy, 2).items()}
    newest = {key: value[:, 1:] for key, value in obs.items()}
    good = run.encode_step(newest)
    with pytest.raises(ValueError, match=r"features of 2 steps are too many: this policy observes 2"):
        run.predict_action(newest, features=[good, good])
    with pytest.raises(ValueError, match=r"\[B, 1, .* but has \[2, 2, "):
        run.predict_action(obs, features=[good])  # would count a step twice
    with pytest.raises(ValueError, match=r"\[B, 2, .* but has \[2, 1, "):
        run.predict_action(newest)
    with pytest.raises(ValueError, match=r"must have shape \[2, 10\], but have \[1, 10\]"):
        run.predict_action(newest, features=[good[:1]])
    with pytest.raises(ValueError, match="NaN"):
        run.predict_action(newest, features=[good * float("nan")])
    with pytest.raises(ValueError, match=r"\[B, 1, .* but has \[2, 2, "):
        run.encode_step(obs)


def test_exported_policies_of_numbers_take_whole_observations(run_as: RunAs) -> None:
    run = run_as("onnx", tiny_policy("regression"))
    assert not run.encodes_steps
    with pytest.raises(ValueError, match="takes whole observations"):
        run.predict_action(np.zeros((1, 1, 5)), features=[np.zeros((1, 5))])
    with pytest.raises(ValueError, match="takes whole observations"):
        run.encode_step(np.zeros((1, 1, 5)))


def test_an_image_file_without_features_is_run_as_before(run_as: RunAs, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make()
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "encodes_steps", False)
        run = run_as("onnx", policy)
    assert not run.encodes_steps
    observations = episode(policy, 7)
    actions = [run.select_action(observation) for observation in observations]
    assert_same(actions, whole_observation_actions(policy, observations))


def test_an_error_of_encoding_in_the_thread_reaches_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make()
    observations = episode(policy, 4)

    def fail(*_: Any) -> None:
        raise OSError("the cable is out")

    with RecedingHorizon(policy, 10.0, asynchronous=True) as loop:
        for observation in observations[:2]:
            loop.step(observation)
        monkeypatch.setattr(policy, "_encode", fail)
        loop.step(observations[2])  # encoded ahead
        with pytest.raises(OSError, match="cable"):
            loop.step(observations[3])
            assert loop._pending is not None
            loop._pending.answer.result(10)


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_leaves_the_episode_alone(kind: str, run_as: RunAs) -> None:
    policy = make()
    run = run_as(kind, policy)
    observations = episode(policy, 7)
    actions = []
    for observation in observations:
        actions.append(run.select_action(observation))
        warm_up(run, calls=1)
    assert_same(actions, whole_observation_actions(policy, observations))


class Counting:
    """Encodes steps to nothing, and keeps how many features each decision was given."""

    encodes_steps = True

    def __init__(self) -> None:
        self.given: list[int] = []

    def encode_step(self, obs: Any) -> np.ndarray:
        return np.zeros((1, 1))

    def predict_action(self, obs: Any, *, features: list[np.ndarray]) -> dict[str, Any]:
        self.given.append(len(features))
        return {"features": np.zeros((1, 2, 1))}


def test_a_decision_has_something_to_encode_even_if_all_steps_are_known() -> None:
    policy, history = Counting(), StepHistory(2)
    for step in range(2):
        history.append({"obs": np.zeros(1)})
        if step == 1:
            encode_newest(policy, history.window(), list)
    decide(policy, history.window(), list)
    decide(policy, history.window(), list)
    assert policy.given == [0, 1]
