"""The scripted demonstrator of BlockPush: it succeeds, in every order it can draw, and finds its way around blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pybullet", reason="needs the package `pybullet` of the bullet extra")

from envs.block_push import BlockPushEnv  # noqa: E402
from envs.block_push.demonstrator import Demonstrator, draw_plan, quarter_turn_error, steer_around  # noqa: E402

numbers = st.floats(-0.5, 0.5)


@pytest.mark.parametrize("mode", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize(("disturbance", "episodes"), [(0.0, 2), (0.006, 1)])
def test_it_succeeds_in_every_order(mode: tuple[int, int], disturbance: float, episodes: int) -> None:
    env = BlockPushEnv(action_mode="absolute")
    rng = np.random.default_rng(0)
    seeds = [seed for seed in range(200) if draw_plan(np.random.default_rng(seed)).legs[0] == mode][:episodes]
    for seed in seeds:
        demonstrator = Demonstrator(seed)
        observation, _ = env.reset(seed=seed)
        for _step in range(350):
            observation, _, terminated, _, info = env.step(
                demonstrator.act(observation) + disturbance * rng.normal(size=2)
            )
            if terminated:
                break
        assert info["is_success"], f"seed {seed}"
        assert (info["first_block"], info["first_target"]) == mode
        block, target = mode
        assert info["entry_steps"][block, target] < info["entry_steps"][1 - block, 1 - target] == _step + 1


def test_the_four_orders_are_equally_likely() -> None:
    orders = [draw_plan(np.random.default_rng(seed)).legs for seed in range(2000)]
    for order in set(orders):
        assert orders.count(order) == pytest.approx(500, abs=80)  # four standard deviations
        assert {block for block, _ in order} == {target for _, target in order} == {0, 1}
    assert len(set(orders)) == 4


def test_the_seed_alone_decides() -> None:
    observation = BlockPushEnv().reset(seed=0)[0]
    first, second = (Demonstrator(5).act(observation) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, Demonstrator(6).act(observation))


@given(numbers, numbers, numbers, numbers, numbers, numbers, st.sampled_from([-1, 1]))
def test_ways_around_an_obstacle_arrive_without_touching_it(
    x: float, y: float, goal_x: float, goal_y: float, centre_x: float, centre_y: float, turn: int
) -> None:
    place, goal, centre = np.array([x, y]), np.array([goal_x, goal_y]), np.array([centre_x, centre_y])
    clearance = 0.05
    if min(np.linalg.norm(place - centre), np.linalg.norm(goal - centre)) < 1.3 * clearance:
        return
    for _ in range(400):
        move = steer_around(place, goal, [centre], clearance, turn) - place
        place = place + move * min(1.0, 0.01 / max(float(np.linalg.norm(move)), 1e-9))
        assert np.linalg.norm(place - centre) > 0.8 * clearance
        if np.linalg.norm(place - goal) < 1e-6:
            return
    raise AssertionError(f"still {np.linalg.norm(place - goal)} away")


@given(st.floats(-20, 20))
def test_a_square_looks_the_same_after_a_quarter_turn(angle: float) -> None:
    error = quarter_turn_error(angle)
    assert -np.pi / 4 - 1e-9 <= error <= np.pi / 4 + 1e-9
    turns = (angle - error) / (np.pi / 2)
    assert turns == pytest.approx(round(turns), abs=1e-9)
