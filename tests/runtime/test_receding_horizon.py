"""The robot loop around any policy: replanning, latency, guard, threads, reset."""

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy.errors import ConfigurationError
from drift_policy.runtime.chunk_guard import ChunkGuard, ChunkRejectedError
from drift_policy.runtime.receding_horizon import RecedingHorizon
from tests.helpers.policies import HEAD_NAMES, tiny_policy
from tests.helpers.scripted_policy import Clock, ScriptedPolicy


def observe(step: int) -> dict[str, np.ndarray]:
    return {"obs": np.array([float(step)])}


def finish_pending(loop: RecedingHorizon) -> None:
    """Wait until the decision in the thread is there."""
    assert loop._pending is not None
    loop._pending.answer.result(10)


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_with_the_defaults_it_executes_what_select_action_executes(head: str) -> None:
    policy = tiny_policy(head)
    observations = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected = [policy.select_action(observation).numpy() for observation in observations]
    torch.manual_seed(1)
    loop = RecedingHorizon(policy, 10.0, clock=Clock())
    steps = [loop.step(observation) for observation in observations]
    assert [step.step for step in steps] == list(range(8))
    assert [step.decision is not None for step in steps] == [True, False, False] * 2 + [True, False]
    np.testing.assert_array_equal([step.action for step in steps], np.stack(expected))


def test_it_replans_every_k_steps_from_the_last_observations() -> None:
    policy = ScriptedPolicy()
    loop = RecedingHorizon(policy, 10.0, replan_every=3)
    actions = [float(loop.step(observe(step)).action[0]) for step in range(8)]
    assert actions == list(range(8))
    assert [window.tolist() for window in policy.observed] == [[0, 0], [2, 3], [5, 6]]


def test_the_options_reach_the_policy() -> None:
    policy = ScriptedPolicy()
    generator = np.random.default_rng(0)
    RecedingHorizon(policy, 10.0, generator=generator, noise_scale=0.5).step(observe(0))
    assert policy.options == [{"generator": generator, "noise_scale": 0.5}]


def test_the_times_of_the_policys_stages_are_told() -> None:
    decision = RecedingHorizon(ScriptedPolicy(), 10.0).step(observe(0)).decision
    assert decision is not None and decision.timing == {"total": 1.0}


@pytest.mark.parametrize("latency", [0.25, 0.29])
def test_a_blocking_decision_skips_the_steps_that_it_took(latency: float) -> None:
    clock = Clock()
    policy = ScriptedPolicy(clock=clock, latency=latency)
    loop = RecedingHorizon(policy, 10.0, clock=clock)
    first = loop.step(observe(0))
    # Nothing moved during the first decision: its chunk is executed from the beginning.
    assert (first.step, first.action[0], first.decision and first.decision.num_skipped) == (0, 0, 0)
    for step in range(1, 4):
        loop.step(observe(step))
    later = loop.step(observe(4))
    assert later.decision is not None
    assert (later.step, later.action[0], later.decision.num_skipped) == (6, 6, 2)
    assert later.decision.latency == pytest.approx(latency)
    assert loop.step(observe(7)).step == 7


def test_without_compensation_every_chunk_starts_with_its_first_action() -> None:
    clock = Clock()
    policy = ScriptedPolicy(clock=clock, latency=0.25)
    loop = RecedingHorizon(policy, 10.0, clock=clock, compensate_latency=False)
    steps = [loop.step(observe(step)) for step in range(6)]
    assert [float(step.action[0]) for step in steps] == [0, 1, 2, 3, 4, 5]


def test_a_chunk_that_is_too_late_is_not_executed() -> None:
    clock = Clock()
    policy = ScriptedPolicy(clock=clock)
    loop = RecedingHorizon(policy, 10.0, clock=clock)
    for step in range(4):
        loop.step(observe(step))
    policy.latency = 0.55
    late = loop.step(observe(4))
    assert late.is_held
    assert late.action[0] == 3
    assert late.decision is not None
    assert late.decision.problem == "the decision took 550 ms, longer than the steps that are executed"
    policy.latency = 0.0
    assert loop.step(observe(10)).action[0] == 10


def test_a_loop_may_leave_out_steps_that_it_missed() -> None:
    loop = RecedingHorizon(ScriptedPolicy(), 10.0)
    assert [float(loop.step(observe(step), step).action[0]) for step in (0, 1, 3, 4, 9)] == [0, 1, 3, 4, 9]
    with pytest.raises(ValueError, match="step 9 does not come after step 9"):
        loop.step(observe(9), 9)


class TestAsynchronous:
    def test_the_old_chunk_goes_on_while_the_new_one_is_made(self) -> None:
        policy = ScriptedPolicy(edit=lambda prediction, number: prediction + 100 * number)
        with RecedingHorizon(policy, 10.0, n_action_steps=6, replan_every=3, asynchronous=True) as loop:
            actions = [float(loop.step(observe(step)).action[0]) for step in range(3)]
            policy.may_answer.clear()
            actions += [float(loop.step(observe(step)).action[0]) for step in (3, 4)]
            policy.may_answer.set()
            finish_pending(loop)
            arrived = loop.step(observe(5))
        assert actions == [0, 1, 2, 3, 4]
        assert arrived.action[0] == 105
        assert arrived.decision is not None
        assert arrived.decision.num_skipped == 2
        assert policy.observed[1].tolist() == [2, 3]

    def test_the_last_action_is_held_when_the_chunk_ends_before_the_next_one_is_there(self) -> None:
        policy = ScriptedPolicy()
        with RecedingHorizon(policy, 10.0, replan_every=3, asynchronous=True) as loop:
            for step in range(3):
                loop.step(observe(step))
            policy.may_answer.clear()
            steps = [loop.step(observe(step)) for step in range(3, 6)]
            policy.may_answer.set()
            finish_pending(loop)
            steps.append(loop.step(observe(6)))
        assert [(float(step.action[0]), step.is_held) for step in steps] == [(3, 0), (3, 1), (3, 1), (6, 0)]

    def test_without_compensation_a_chunk_starts_when_it_arrives(self) -> None:
        policy = ScriptedPolicy()
        settings: dict[str, Any] = {"replan_every": 3, "asynchronous": True, "compensate_latency": False}
        with RecedingHorizon(policy, 10.0, **settings) as loop:
            for step in range(4):
                loop.step(observe(step))
            finish_pending(loop)
            assert loop.step(observe(4)).action[0] == 3

    def test_a_decision_that_arrives_when_the_next_one_is_due_is_told(self) -> None:
        policy = ScriptedPolicy()
        with RecedingHorizon(policy, 10.0, replan_every=2, asynchronous=True) as loop:
            for step in range(2):
                loop.step(observe(step))
            policy.may_answer.clear()
            loop.step(observe(2))
            policy.may_answer.set()
            finish_pending(loop)
            policy.may_answer.clear()
            arrived = loop.step(observe(4), 4)  # the decision of step 2, while that of step 4 begins
            policy.may_answer.set()
        assert loop._pending is not None
        assert arrived.decision is not None and arrived.decision.num_skipped == 2

    def test_the_latency_ends_with_the_answer_and_not_when_the_loop_sees_it(self) -> None:
        clock = Clock()
        policy = ScriptedPolicy(clock=clock, latency=0.25)
        with RecedingHorizon(policy, 10.0, replan_every=2, asynchronous=True, clock=clock) as loop:
            for step in range(3):
                loop.step(observe(step))
            finish_pending(loop)
            clock.now += 5.0
            decision = loop.step(observe(3)).decision
        assert decision is not None and decision.latency == pytest.approx(0.25)

    def test_an_error_in_the_thread_reaches_the_loop(self) -> None:
        def fail(prediction: np.ndarray, number: int) -> np.ndarray:
            if number == 1:
                raise OSError("the cable is out")
            return prediction

        with RecedingHorizon(ScriptedPolicy(edit=fail), 10.0, replan_every=2, asynchronous=True) as loop:
            for step in range(3):
                loop.step(observe(step))
            with pytest.raises(OSError, match="cable"):
                finish_pending(loop)
            with pytest.raises(OSError, match="cable"):
                loop.step(observe(3))

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_after_an_error_the_next_step_decides_again(self, asynchronous: bool) -> None:
        def fail(prediction: np.ndarray, number: int) -> np.ndarray:
            if number == 1:
                raise OSError("the cable is out")
            return prediction

        policy = ScriptedPolicy(edit=fail)
        settings: dict[str, Any] = {"n_action_steps": 11, "replan_every": 4, "asynchronous": asynchronous}
        with RecedingHorizon(policy, 10.0, **settings) as loop:
            for step in range(4):
                loop.step(observe(step))
            if asynchronous:  # the decision of step 4 is known to have failed in step 5
                loop.step(observe(4))
                with pytest.raises(OSError, match="cable"):
                    finish_pending(loop)
            with pytest.raises(OSError, match="cable"):
                loop.step(observe(4 + asynchronous))
            control = loop.step(observe(5 + asynchronous))
            assert (control.action[0], control.is_held) == (5 + asynchronous, False)
            loop.reset()
        assert policy.observed[2].tolist() == [4 + asynchronous, 5 + asynchronous]

    def test_a_decision_of_the_episode_before_is_forgotten(self) -> None:
        policy = ScriptedPolicy(edit=lambda prediction, number: prediction + 100 * number)
        with RecedingHorizon(policy, 10.0, replan_every=2, asynchronous=True) as loop:
            for step in range(3):
                loop.step(observe(step))
            loop.reset()
            first = loop.step(observe(0))
        assert first.action[0] == 200
        assert policy.observed[-1].tolist() == [0, 0]

    def test_after_a_reset_the_policy_is_free(self) -> None:
        policy = ScriptedPolicy()
        with RecedingHorizon(policy, 10.0, replan_every=2, asynchronous=True) as loop:
            for step in range(2):
                loop.step(observe(step))
            policy.may_answer.clear()
            loop.step(observe(2))
            threading.Timer(0.1, policy.may_answer.set).start()
            loop.reset()
            assert len(policy.observed) == 2, "the decision under way has ended"

    def test_a_pytorch_policy_decides_in_the_thread(self) -> None:
        policy = tiny_policy("drift")
        with RecedingHorizon(policy, 1000.0, replan_every=1, asynchronous=True) as loop:
            steps = [loop.step(np.zeros(5, np.float32)) for _ in range(20)]
        assert all(np.isfinite(step.action).all() for step in steps)


class TestGuard:
    @staticmethod
    def bad_second(prediction: np.ndarray, number: int) -> np.ndarray:
        return prediction + (500 if number == 1 else 0)

    def test_a_rejected_chunk_is_not_executed_and_the_policy_decides_again(self) -> None:
        policy = ScriptedPolicy(edit=self.bad_second)
        loop = RecedingHorizon(policy, 10.0, guard=ChunkGuard(max_jump=20.0))
        steps = [loop.step(observe(step)) for step in range(6)]
        assert [float(step.action[0]) for step in steps] == [0, 1, 2, 3, 3, 5]
        assert [step.is_held for step in steps] == [False] * 4 + [True, False]
        decision = steps[4].decision
        assert decision is not None
        assert decision.problem is not None
        assert decision.problem.startswith("the jump 501 of action 0")

    def test_the_rest_of_the_old_chunk_is_executed_first(self) -> None:
        policy = ScriptedPolicy(edit=self.bad_second)
        loop = RecedingHorizon(policy, 10.0, replan_every=2, guard=ChunkGuard(high=100.0))
        steps = [loop.step(observe(step)) for step in range(4)]
        assert [(float(step.action[0]), step.is_held) for step in steps] == [(0, 0), (1, 0), (2, 0), (3, 0)]
        assert [window[-1] for window in policy.observed] == [0, 2, 3], "a rejected decision is made again at once"

    def test_only_what_would_be_executed_is_checked(self) -> None:
        loop = RecedingHorizon(ScriptedPolicy(), 10.0, guard=ChunkGuard(high=3.0))  # it predicts up to step 10
        steps = [loop.step(observe(step)) for step in range(5)]
        assert [(float(step.action[0]), step.is_held) for step in steps] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)]

    def test_stop_raises(self) -> None:
        loop = RecedingHorizon(
            ScriptedPolicy(edit=self.bad_second), 10.0, guard=ChunkGuard(high=100.0, on_violation="stop")
        )
        for step in range(4):
            loop.step(observe(step))
        with pytest.raises(ChunkRejectedError, match="position 504 of action 0"):
            loop.step(observe(4))

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_nan_never_reaches_the_robot(self, asynchronous: bool) -> None:
        def poison(prediction: np.ndarray, number: int) -> np.ndarray:
            if number % 2:
                prediction[-1 - number % 4] = np.nan
            return prediction

        with RecedingHorizon(
            ScriptedPolicy(edit=poison), 10.0, n_action_steps=11, replan_every=2, asynchronous=asynchronous
        ) as loop:
            steps = [loop.step(observe(step)) for step in range(40)]
        assert all(np.isfinite(step.action).all() for step in steps)

    def test_a_first_chunk_that_is_rejected_has_nothing_to_hold(self) -> None:
        loop = RecedingHorizon(ScriptedPolicy(), 10.0, guard=ChunkGuard(low=1.0))
        with pytest.raises(ChunkRejectedError, match="no position to hold: the position 0 of action 0"):
            loop.step(observe(0))

    def test_the_position_of_the_robot_is_held_and_jumps_are_counted_from_it(self) -> None:
        policy = ScriptedPolicy()
        loop = RecedingHorizon(policy, 10.0, guard=ChunkGuard(max_jump=2.0))
        loop.reset(position=[50.0])
        far = loop.step(observe(0))
        assert (far.action[0], far.is_held) == (50.0, True)
        near = loop.step(observe(49))
        assert (near.action[0], near.is_held) == (49.0, False)

    def test_no_chunk_of_the_episode_before_is_executed(self) -> None:
        loop = RecedingHorizon(ScriptedPolicy(edit=self.bad_second), 10.0, guard=ChunkGuard(high=100.0))
        loop.step(observe(0))
        loop.reset(position=[50.0])
        first = loop.step(observe(0))  # its chunk is rejected
        assert (first.action[0], first.is_held) == (50.0, True)

    def test_the_position_and_the_actions_are_the_loops_own(self) -> None:
        loop = RecedingHorizon(ScriptedPolicy(), 10.0, guard=ChunkGuard(high=1.0))
        position = np.array([50.0])
        loop.reset(position)
        position[:] = np.nan  # drivers reuse their buffers
        assert loop.step(observe(5)).action[0] == 50.0
        loop.step(observe(5)).action[:] = np.nan
        assert loop.step(observe(5)).action[0] == 50.0

    def test_the_jerk_of_a_first_action_reaches_back_to_three_executed_ones(self) -> None:
        def accelerate(prediction: np.ndarray, number: int) -> np.ndarray:
            steps = np.arange(len(prediction))[:, None]
            return prediction + number * steps * (steps + 1) / 2

        # 1, 2, 3 at a constant velocity, then 5 and a constant acceleration: only the step to that has a jerk.
        loop = RecedingHorizon(ScriptedPolicy(edit=accelerate), 10.0, guard=ChunkGuard(max_jerk=900.0))
        decision = [loop.step(observe(step)) for step in range(5)][-1].decision
        assert decision is not None
        assert decision.problem is not None
        assert decision.problem.startswith("the jerk 1000 of action 0")

    def test_the_faded_motion_is_what_is_checked(self) -> None:
        # The raw chunk jumps by 41; faded over the chunk the first step is 40 / 5 + 1.
        policy = ScriptedPolicy(edit=lambda prediction, number: prediction + 40 * number)
        guard = ChunkGuard(max_jump=20.0)
        rejected = RecedingHorizon(policy, 10.0, replan_every=2, guard=guard)
        faded = RecedingHorizon(policy, 10.0, replan_every=2, guard=guard, cross_fade_steps=4)
        for loop, is_accepted in ((rejected, False), (faded, True)):
            policy.observed.clear()
            decision = [loop.step(observe(step)) for step in range(3)][-1].decision
            assert decision is not None
            assert (decision.problem is None) == is_accepted


def test_actions_are_copies() -> None:
    loop = RecedingHorizon(ScriptedPolicy(), 10.0)
    loop.step(observe(0)).action[:] = np.nan
    assert loop.step(observe(1)).action[0] == 1


@pytest.mark.parametrize("position", [[1.0, 2.0], [np.nan], 3.0])
def test_a_position_that_does_not_fit_is_refused(position: Any) -> None:
    with pytest.raises(ValueError, match="position must be 1 finite numbers"):
        RecedingHorizon(ScriptedPolicy(), 10.0).reset(position)


@pytest.mark.parametrize(
    ("control_hz", "settings", "message"),
    [
        (0.0, {}, "control_hz must be positive"),
        (float("inf"), {}, "control_hz must be positive"),
        (10.0, {"replan_every": 0}, "give 1 to 4"),
        (10.0, {"replan_every": 5}, "give 1 to 4"),
        (10.0, {"guard": ChunkGuard(high=[1.0, 2.0])}, "each of the 1 dimensions"),
    ],
)
def test_settings_that_cannot_work_are_refused(control_hz: float, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RecedingHorizon(ScriptedPolicy(), control_hz, **settings)


def test_something_that_is_no_policy_is_refused() -> None:
    with pytest.raises(TypeError, match="int is no policy"):
        RecedingHorizon(3, 10.0)


@pytest.mark.parametrize(("control_hz", "warns"), [(12.5, False), (12, False), (13, True), (20, True), (6, True)])
def test_another_rate_than_that_of_the_demonstrations_is_told(control_hz: float, warns: bool) -> None:
    policy = tiny_policy()
    policy.metadata["control_hz"] = 12
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RecedingHorizon(policy, control_hz)
    texts = [str(warning.message) for warning in told]
    assert all(f"{control_hz / 12:.2g} times as fast" in text for text in texts)
    assert [f"trained on 12 steps a second, but control_hz is {control_hz:g}" in text for text in texts] == [
        True
    ] * warns
