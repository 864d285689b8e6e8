"""The times of a decision's stages, and first decisions before the robot moves."""

import numpy as np
import pytest
import torch

from drift_policy.runtime.timed_policy import STAGES, TimedPolicy
from drift_policy.runtime.warm_up import warm_up
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.policies import HEAD_NAMES, CallCounter, tiny_obs, tiny_policy


@pytest.mark.parametrize("num_candidates", [1, 4])
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_a_timed_decision_is_the_policys_own(head: str, num_candidates: int) -> None:
    policy = tiny_image_policy(head, num_candidates=num_candidates)
    obs = tiny_obs(policy)
    expected = policy.predict_action(obs, generator=torch.Generator().manual_seed(0))
    found = TimedPolicy(policy).predict_action(obs, generator=torch.Generator().manual_seed(0))
    for key in ("action", "action_pred"):
        assert torch.equal(found[key], expected[key])
    timing = found["timing"]
    assert timing.keys() == {*STAGES, "total"}
    assert timing["total"] == pytest.approx(sum(timing[stage] for stage in STAGES))
    assert all(value > 0 for value in timing.values())


@pytest.mark.parametrize("head", HEAD_NAMES)
@pytest.mark.parametrize("timed", [False, True])
def test_warming_up_leaves_random_numbers_and_queue_alone(head: str, timed: bool) -> None:
    policy = tiny_policy(head)
    observation = torch.zeros(5)
    torch.manual_seed(3)
    policy.select_action(observation)
    expected = [policy.select_action(observation) for _ in range(5)]
    policy.reset()
    torch.manual_seed(3)
    policy.select_action(observation)
    warm_up(TimedPolicy(policy) if timed else policy)
    assert all(torch.equal(policy.select_action(observation), action) for action in expected)


def test_warming_up_makes_as_many_decisions_as_asked_for() -> None:
    policy = tiny_image_policy()
    network = CallCounter(policy.head.network)
    times = warm_up(policy, calls=4, batch_size=2)
    assert network.rows == [2] * 8  # with cameras, each from a whole observation and from the newest step alone
    assert np.isfinite([times.first_ms, times.last_ms]).all()
    with pytest.raises(ValueError, match="at least 1"):
        warm_up(policy, calls=0)
