"""The scheduler: which action is executed in which control step."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_policy.errors import ConfigurationError
from drift_policy.runtime.action_queue import ActionQueue, Plan
from drift_policy.runtime.spec import ObservationKey, PolicySpec


def spec(horizon: int = 8, n_obs_steps: int = 2, n_action_steps: int = 4) -> PolicySpec:
    return PolicySpec(
        observations={"obs": ObservationKey("state", (1,))},
        action_dim=1,
        horizon=horizon,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        noise_scale=1.0,
    )


def prediction(start: float, horizon: int = 8) -> np.ndarray:
    """Actions that count up by one a step."""
    return (start + np.arange(horizon, dtype=np.float32))[:, None]


def actions(queue: ActionQueue, steps: Iterable[int]) -> list[float | None]:
    found = [queue.action_at(step) for step in steps]
    return [None if action is None else float(action[0]) for action in found]


def put(queue: ActionQueue, values: np.ndarray, observed_at: int, now: int) -> Plan:
    plan = queue.splice(values, observed_at, now)
    queue.accept(plan)
    return plan


def test_the_first_action_belongs_to_the_newest_observation() -> None:
    queue = ActionQueue(spec())
    put(queue, prediction(100), observed_at=0, now=0)
    # Two observation steps: action 0 of the prediction lies before the newest observation.
    assert actions(queue, range(6)) == [101, 102, 103, 104, None, None]


def test_an_empty_queue_has_no_action() -> None:
    queue = ActionQueue(spec())
    assert actions(queue, range(2)) == [None, None]
    put(queue, prediction(0), 0, 0)
    queue.clear()
    assert actions(queue, range(2)) == [None, None]


def test_actions_whose_step_has_passed_are_skipped() -> None:
    queue = ActionQueue(spec())
    plan = put(queue, prediction(100), observed_at=10, now=12)
    assert plan.num_skipped == 2
    assert actions(queue, range(10, 15)) == [None, None, 103, 104, None]


def test_a_prediction_that_comes_after_all_its_steps_has_nothing_to_execute() -> None:
    queue = ActionQueue(spec())
    plan = queue.splice(prediction(0), observed_at=0, now=4)
    assert (plan.num_executable, plan.num_skipped, len(plan.executable)) == (0, 4, 0)
    much_later = queue.splice(prediction(0), observed_at=0, now=50)
    assert (much_later.num_executable, much_later.num_skipped) == (0, 4)


def test_a_new_plan_replaces_the_old_one_at_once() -> None:
    queue = ActionQueue(spec())
    put(queue, prediction(0), 0, 0)
    put(queue, prediction(100), observed_at=2, now=3)
    assert actions(queue, range(3, 7)) == [102, 103, 104, None]


def test_splice_alone_changes_nothing() -> None:
    queue = ActionQueue(spec(), cross_fade_steps=2)
    values = prediction(0)
    put(queue, values, 0, 0)
    before = actions(queue, range(5))
    queue.splice(prediction(1000), 1, 2)
    assert actions(queue, range(5)) == before
    assert np.array_equal(values, prediction(0))


def test_a_cross_fade_leaves_the_prediction_alone() -> None:
    queue = ActionQueue(spec(), cross_fade_steps=3)
    put(queue, prediction(0), 0, 0)
    values = prediction(1000).astype(np.float64)  # of the queue's own type
    put(queue, values, 1, 1)
    assert np.array_equal(values, prediction(1000))


def test_a_cross_fade_mixes_both_chunks_step_by_step() -> None:
    queue = ActionQueue(spec(), cross_fade_steps=3)
    put(queue, prediction(-1), 0, 0)  # the action of step t is t
    put(queue, prediction(99), observed_at=0, now=0)  # the action of step t is 100 + t
    # The fourth step is the new chunk's alone.
    assert actions(queue, range(4)) == pytest.approx([25.0, 51.0, 77.0, 103.0])


def test_a_cross_fade_also_uses_what_the_old_chunk_predicted_beyond_its_executed_steps() -> None:
    queue = ActionQueue(spec(), cross_fade_steps=1)
    put(queue, prediction(-1), 0, 0)
    assert actions(queue, [4]) == [None]
    put(queue, prediction(99), observed_at=4, now=4)
    assert actions(queue, [4, 5]) == pytest.approx([(4 + 100) / 2, 101])


def test_a_cross_fade_ends_where_the_old_prediction_ends() -> None:
    queue = ActionQueue(spec(), cross_fade_steps=4)
    put(queue, prediction(-1), 0, 0)  # predicts steps 0 to 6
    put(queue, prediction(99), observed_at=6, now=6)
    assert actions(queue, [6, 7]) == pytest.approx([0.8 * 6 + 0.2 * 100, 101])


def test_a_cross_fade_without_overlap_is_none() -> None:
    queue = ActionQueue(spec(), cross_fade_steps=4)
    put(queue, prediction(-1), 0, 0)
    put(queue, prediction(99), observed_at=20, now=20)
    assert actions(queue, [20, 21]) == [100, 101]


@given(
    horizon=st.integers(1, 12),
    n_obs_steps=st.integers(1, 3),
    executed=st.integers(1, 12),
    fade=st.integers(0, 6),
    arrivals=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=6),
)
def test_chunks_that_agree_give_the_same_actions_whatever_the_timing(
    horizon: int, n_obs_steps: int, executed: int, fade: int, arrivals: list[tuple[int, int]]
) -> None:
    longest = horizon - n_obs_steps + 1
    if longest < 1:
        return
    sizes = spec(horizon, n_obs_steps, 1)
    queue = ActionQueue(sizes, n_action_steps=min(executed, longest), cross_fade_steps=min(fade, longest))
    now = 0
    for pause, latency in arrivals:
        observed_at = now + pause
        now = observed_at + latency
        # Every prediction says that the action of step t is t.
        plan = queue.splice(prediction(observed_at - n_obs_steps + 1, horizon), observed_at, now)
        queue.accept(plan)
        for step in range(now - 2, now + 14):
            action = queue.action_at(step)
            expected_there = now <= step < observed_at + queue.n_action_steps
            assert (action is not None) == expected_there
            if action is not None:
                assert action[0] == pytest.approx(step)


@pytest.mark.parametrize(
    "settings", [{"n_action_steps": 0}, {"n_action_steps": 8}, {"cross_fade_steps": -1}, {"cross_fade_steps": 8}]
)
def test_numbers_that_cannot_work_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        ActionQueue(spec(), **settings)


def test_all_steps_from_the_newest_observation_on_may_be_executed() -> None:
    queue = ActionQueue(spec(), n_action_steps=7)
    put(queue, prediction(0), 0, 0)
    assert actions(queue, range(8)) == [1, 2, 3, 4, 5, 6, 7, None]


def test_wrong_predictions_are_refused() -> None:
    queue = ActionQueue(spec())
    with pytest.raises(ValueError, match=r"shape \[8, 1\], but this one has \[7, 1\]"):
        queue.splice(prediction(0, 7), 0, 0)
    with pytest.raises(ValueError, match="in the future"):
        queue.splice(prediction(0), 3, 2)
